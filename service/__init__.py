"""The inference service: small modules by subject, assembled by app.py. They depend on each other downwards only:

app                     puts it together (api.py, at the top, is what uvicorn runs)
routes/                 what each address does
lifecycle               start and stop
middleware, exchange    what holds for every request; one request and its response
core                    the parts of one service
generation, uploads     a request's work, from its body to its reply; uploads try files out by trial.py
sse                     server-sent events, and clients that go away
scheduler, registry     sequences that advance together, token by token; the models that are loaded
sequences, folder       one request's sequences; the weights files, which watch.py guards where they are mapped
engines                 the two models behind one interface
schemas, auth           bodies; tokens
capacity                how large a model fits
__main__, health        `python -m service`, and what asks it whether it is up
metrics, logs, errors, settings, wording
"""
