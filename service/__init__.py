"""The inference service: small modules by subject, assembled by app.py. They depend on each other downwards only:

app                     puts it together (api.py, at the top, is what uvicorn runs)
routes/                 what each address does
lifecycle, middleware   start and stop; what holds for every request
core                    the parts of one service
generation, uploads     a request's work, from its body to its reply; uploads try files out by trial.py
sse                     server-sent events, and clients that go away
scheduler               sequences that advance together, token by token
sequences, registry     one request's sequences; the models that are loaded
engines                 the two models behind one interface
schemas, auth           bodies; tokens
metrics, logs, errors, settings, wording
"""
