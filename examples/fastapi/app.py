"""A wall of notes: a page follows a room, and the server signs tokens and publishes."""

import os
import time
import uuid
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import jwt
from fastapi import FastAPI, Header, HTTPException
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

GATEWAY = os.environ.get("ROOMCAST_URL", "http://127.0.0.1:8080")
SECRET = os.environ["ROOMCAST_JWT_HS256_SECRET"]


class Note(BaseModel):
    user: str
    text: str = Field(min_length=1, max_length=500)


def sign(subject, roomcast):
    claims = {"sub": subject, "exp": int(time.time()) + 600, "roomcast": roomcast}
    return jwt.encode(claims, SECRET, algorithm="HS256")


@asynccontextmanager
async def lifespan(app):
    async with httpx.AsyncClient(base_url=GATEWAY, timeout=5) as app.state.gateway:
        yield


app = FastAPI(lifespan=lifespan)


# A real application takes the user from its session.
@app.get("/session")
def session(user: str):
    return {"gateway": GATEWAY, "token": sign(user, {"subscribe": ["wall"]})}


@app.post("/notes", status_code=201)
async def post_note(note: Note, idempotency_key: str | None = Header(default=None)):
    headers = {
        "Authorization": f"Bearer {sign('server', {'publish': ['wall']})}",
        "Idempotency-Key": idempotency_key or str(uuid.uuid4()),
    }
    event = {"event": "note", "data": note.model_dump()}
    try:
        answer = await app.state.gateway.post("/v1/rooms/wall/events", json=event, headers=headers)
        answer.raise_for_status()
    except httpx.HTTPError as error:
        raise HTTPException(503, "not posted") from error


app.mount("/", StaticFiles(directory=Path(__file__).parent / "public", html=True))
