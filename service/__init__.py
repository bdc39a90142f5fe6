"""The HTTP service: small modules by subject, put together by app.py. Each depends only on those below it:

app                     puts it together (api.py, at the top, is what uvicorn runs)
routes/                 what each route does
lifecycle               start and stop
middleware, exchange    what holds for every HTTP exchange; one exchange: its body, its reply, their limits
core                    the parts of one service
generation, uploads     start a request; receive a weights file, which trial tries in a process of its own
sse                     server-sent events, and clients that disconnect
scheduler, registry     sequences that advance together, token by token; the models that are loaded
request, sequences      one HTTP request in progress; the texts that it generates
folder                  the weights files, guarded where they are mapped
engines                 the two models behind one interface
schemas, inspections    bodies of requests and replies; those of the routes that look inside a model
fields, validation      fields that bodies share; what is wrong with a body, in words that name its fields
auth                    tokens
capacity                how large a model fits in memory
__main__, health        `python -m service`; `python -m service.health`, which asks it whether it is up
metrics, logs, errors, settings, wording
"""
