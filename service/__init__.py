"""The inference service: small modules by subject, assembled by app.py. They depend on each other downwards only:

app                     puts it together (api.py, at the top, is what uvicorn runs)
routes/                 what each address does
lifecycle               start and stop
middleware, exchange    what holds for every HTTP exchange; one exchange: its body, its reply, their limits
core                    the parts of one service
generation, uploads     start a request; receive a weights file, which trial.py tries in a process of its own
sse                     server-sent events, and clients that disconnect
scheduler, registry     sequences that advance together, token by token; the models that are loaded
request, sequences      one HTTP request in progress; the texts that it generates
folder                  the weights files, guarded where they are mapped
engines                 the two models behind one interface
schemas, auth           bodies; tokens
capacity                how large a model fits
__main__, health        `python -m service`, and what asks it whether it is up
metrics, logs, errors, settings, wording
"""
