"""A small web app in the gateway: a conversation, the passages that search finds, thumbs and a corrected answer."""

import asyncio
import html
import os
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported: it calls nobody
import gradio as gr
from fastapi import FastAPI, Request
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ftdocs import runs
from ftdocs.access import Keys
from ftdocs.data.personal import mask_row
from ftdocs.data.read import is_documents
from ftdocs.errors import InputError
from ftdocs.feedback import LONGEST, Feedback, Store
from ftdocs.gateway import Gateway, read_body
from ftdocs.protocol import Asked, Refused, Turn
from ftdocs.retrieve import Retriever, passages

PASSAGES = 3
LONGEST_NAME = 64  # characters, of who logs in
# Whatever a model writes, the browser fetches nothing from elsewhere for it.
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline';"
    " img-src 'self' data: blob:; font-src 'self' data:; frame-ancestors 'none'"
)
NOTHING = "<p>Nothing in the documents fits the question.</p>"
ABOUT = (
    "<p>What search found in the documents, to check the answer by. The model did not read it: it answers from its"
    " training.</p>"
)


def retriever(run: Path | None) -> Retriever | None:
    """Search over the documents that a run was trained on, masked as its rows were.

    None for a run on other data, or where they are gone.
    """
    data = runs.read_recipe(run).data if run else None
    folder = data.path if data else None
    if data is None or folder is None or not folder.exists() or not is_documents(folder):
        return None
    try:
        found = passages(folder)
        return Retriever([mask_row(row) for row in found] if data.personal else found, ["bm25"])
    except InputError:
        return None


def sources(search: Retriever | None, question: str) -> str:
    """The passages that fit a question best, as HTML."""
    if search is None:
        return ""
    found = [
        f"<details open><summary>{html.escape(hit.source)}, {html.escape(hit.where)}</summary>"
        f"<p>{html.escape(hit.text[:600])}{' …' * (len(hit.text) > 600)}</p></details>"
        for hit in search.search(question, PASSAGES)
    ]
    return ABOUT + ("".join(found) or NOTHING)


def plain(history: list[Any]) -> list[dict[str, str]]:
    """Gradio's history as a conversation: its messages hold their text in parts."""
    turns = []
    for message in history:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(part if isinstance(part, str) else part.get("text", "") for part in content)
        turns.append({"role": message["role"], "content": content})
    return turns


def known(keys: Keys, users: dict[str, int], user: str, password: str) -> bool:
    """Whether a name and an API key may log in; ``users`` then says whose key it was.

    A name belongs to the first key that comes with it: with another one its requests would count as that key's.
    """
    place = keys.place(password)
    return place is not None and len(user) <= LONGEST_NAME and users.setdefault(user, place) == place


def blocks(
    gateway: Gateway, store: Store | None, search: Retriever | None, users: dict[str, int]
) -> gr.Blocks:
    """The page; ``users`` says which key each name logged in with, so that its requests count as that key's."""
    name = gateway.served.name
    with gr.Blocks(title=name, analytics_enabled=False) as page:
        gr.Markdown(f"# {html.escape(name)}")
        # As plain text: Markdown of a model could hold pictures from elsewhere.
        chat = gr.Chatbot(
            label="Conversation",
            render_markdown=False,
            feedback_options=None,
            buttons=["copy"],
            elem_id="chat",
            height=420,
        )
        box = gr.Textbox(label="Your message", autofocus=True, max_lines=8, elem_id="message")
        send = gr.Button("Send", variant="primary", elem_id="send")
        found = gr.HTML(label="Sources", elem_id="sources")
        trouble = gr.Markdown(elem_id="trouble")
        with gr.Accordion("Is the last answer right?", open=True, visible=store is not None):
            gr.Markdown(
                "What you say here is kept with the conversation, on this server, to train the next model with."
            )
            with gr.Row():
                up = gr.Button("👍 Right", elem_id="up")
                down = gr.Button("👎 Wrong", elem_id="down")
            better = gr.Textbox(
                label="What it should have said", lines=3, max_length=LONGEST, elem_id="correction"
            )
            correct = gr.Button("Send the correction", elem_id="correct")
            said = gr.Markdown(elem_id="said")

        async def answer(
            text: str, history: list[Any], request: gr.Request
        ) -> AsyncIterator[tuple[Any, ...]]:
            turns = plain(history)
            if not text.strip():
                yield history, text, "", ""
                return
            asked_turns = [*turns, {"role": "user", "content": text.strip()}]
            shown = [*asked_turns, {"role": "assistant", "content": ""}]
            try:
                gateway.check_rate(users.get(request.username or ""))
                asked = Asked(model=name, messages=[Turn.model_validate(turn) for turn in asked_turns])
                until = gateway.until()
                tokens = await gateway.counted(asked, until)
                passages_found = await asyncio.to_thread(sources, search, text)
                async for chunk in gateway.answer(asked, tokens, until):
                    for choice in chunk.get("choices", ()):
                        shown[-1]["content"] += choice["delta"].get("content") or ""
                    yield shown, "", passages_found, ""
            except Refused as error:  # the message stays in the box, to be sent again
                yield history, text, "", f"**Not answered:** {error.message}"

        async def rate(history: list[Any], rating: int, correction: str) -> str:
            turns = plain(history)
            if store is None or len(turns) < 2 or turns[-1]["role"] != "assistant":
                return "There is no answer yet."
            if len(correction) > LONGEST:
                return f"A correction has {LONGEST} characters at most."
            feedback = Feedback(
                turns[:-1], turns[-1]["content"], rating, correction, gateway.served.fingerprint
            )
            number = await asyncio.to_thread(store.add, feedback)
            return f"Kept as number {number}. Thank you."

        async def liked(history: list[Any]) -> str:
            return await rate(history, 1, "")

        async def disliked(history: list[Any]) -> str:
            return await rate(history, -1, "")

        async def corrected(history: list[Any], correction: str) -> tuple[str, str]:
            if not correction.strip():
                return "Write first what it should have said.", correction
            return await rate(history, -1, correction), ""

        private: dict[str, Any] = {"api_visibility": "private"}
        asking: dict[str, Any] = {
            "inputs": [box, chat],
            "outputs": [chat, box, found, trouble],
            "concurrency_limit": 32,
            **private,
        }
        send.click(answer, **asking)
        box.submit(answer, **asking)
        up.click(liked, [chat], said, **private)
        down.click(disliked, [chat], said, **private)
        correct.click(corrected, [chat, better], [said, better], **private)
    # What waits here waits for the gateway, whose own queue is as long; Gradio's would have no end.
    page.queue(max_size=max(1, gateway.limits.queue))
    return page


class Policy:
    """Middleware that sends :data:`POLICY` with every response."""

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, with two more headers."""

        async def with_policy(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["Content-Security-Policy"] = POLICY
                headers["Referrer-Policy"] = "no-referrer"
            await send(message)

        await self.app(scope, receive, with_policy)


def add(app: FastAPI, gateway: Gateway, store: Store | None, search: Retriever | None) -> FastAPI:
    """The gateway's application with the web app at ``/``, and ``POST /feedback`` for programs.

    Where there are API keys, the web app asks for one as its password.
    """

    app.add_middleware(Policy)
    users: dict[str, int] = {}
    if store is not None:

        @app.post("/feedback", status_code=201)
        async def feedback(request: Request) -> dict[str, int]:
            gateway.check_rate(gateway.check_key(request.headers.get("authorization")))
            given = gateway.parse_feedback(await read_body(request, gateway.limits.body_bytes))
            return {"id": await asyncio.to_thread(store.add, given)}

    who = partial(known, gateway.keys, users) if gateway.keys else None
    asked = (
        f"A name of up to {LONGEST_NAME} characters that no other key has, and an API key as the password."
    )
    theme = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])
    return gr.mount_gradio_app(
        app, blocks(gateway, store, search, users), "/", theme=theme, footer_links=[], run_history=False,
        ssr_mode=False, auth=who, auth_message=asked if who else None,
        max_file_size=1, mcp_server=False, enable_monitoring=False, pwa=False,
    )  # fmt: skip
