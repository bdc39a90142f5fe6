"""OpenAI's protocol under /v1, for the clients that people already have.

https://platform.openai.com/docs/api-reference. Unknown fields are ignored. A field that would change the text in a way
that this model cannot is refused only at a value that changes something. Errors have OpenAI's shape.
"""

from fastapi import APIRouter

from service.core import Service
from service.routes.openai import chat, completions, embeddings, models
from service.routes.openai.bodies import Bodies


def router(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v1", tags=["OpenAI's protocol"])
    bodies = Bodies.of(service.settings)
    for module in (completions, chat, embeddings, models):
        module.add(routes, service, bodies)
    return routes
