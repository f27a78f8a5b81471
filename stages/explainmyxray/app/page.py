"""The page itself, in Gradio: a place to drop a film, phantoms to click on, and the sheet with the answer.

A file goes from the browser into the request, in base64, and from there into memory: Gradio's own upload component would
write it to disk first. In memory Gradio's queue holds the latest requests until later ones take their place, and its sessions
the latest sheet of each visitor, of `SESSIONS` at most.
"""

import os
from collections.abc import Callable
from html import escape
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when gradio is imported: nothing is told to anyone

import gradio as gr
from starlette.middleware import Middleware

from explainmyxray.app.examples import examples
from explainmyxray.app.guard import Guard
from explainmyxray.app.sheet import uri
from explainmyxray.images.decoding import MAX_FILE_BYTES

HERE = Path(__file__).parent
WAITING = 64  # requests in the queue; more are told to come back
SESSIONS = 64
HEAD = (
    "<header><h1>ExplainMyXray</h1><p><b>For research only, not a medical device.</b> "
    "A chest X-ray in; its report and where the model looked out.</p></header>"
)
EMPTY = '<p class="empty">Drop a chest X-ray on the left, or click one of the phantoms: its report and where the model looked appear here.</p>'
# Of a new sheet the first finding is shown, whatever was chosen on the one before.
FIRST = "watch('value', () => { const first = element.querySelector('[name=look]'); if (first) first.checked = true; });"
THEME = gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["monospace"])  # no font is fetched


def page(answer: Callable[[str], str]) -> gr.Blocks:
    """The page; `answer` makes the sheet's HTML of a file in base64, one at a time."""
    with gr.Blocks(title="ExplainMyXray", analytics_enabled=False) as blocks:
        gr.HTML(HEAD)
        with gr.Row(equal_height=False):
            with gr.Column(scale=0, min_width=248):
                drop = gr.HTML(
                    "",
                    html_template=_drop(),
                    js_on_load=(HERE / "page.js").read_text(),
                    elem_id="drop",
                    limit=MAX_FILE_BYTES,
                )
            with gr.Column(scale=1, min_width=600):
                shown = gr.HTML(EMPTY, elem_id="shown", min_height=560, js_on_load=FIRST)
        drop.submit(
            lambda upload: ("", answer(upload)),
            drop,
            [drop, shown],
            api_name="explain",
            concurrency_limit=1,
            show_progress_on=shown,
        )
    return blocks.queue(max_size=WAITING)


def launch(blocks: gr.Blocks, host: str, port: int | None) -> str:
    """Serve the page in a thread; its address. Raises OSError where the port is taken."""
    _, address, _ = blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        quiet=True,
        prevent_thread_lock=True,
        inbrowser=False,
        app_kwargs={"middleware": [Middleware(Guard)]},
        theme=THEME,
        css=(HERE / "page.css").read_text(),
        run_history=False,  # Gradio's default: every upload and answer is kept in the browser's storage
        footer_links=[],
        state_session_capacity=SESSIONS,
        ssr_mode=False,
        enable_monitoring=False,
        mcp_server=False,
        pwa=False,
        max_file_size=MAX_FILE_BYTES,
    )
    return address


def _drop() -> str:
    """The place for a film, and the phantoms under it."""
    thumbnails = "".join(
        f'<button type="button" class="example" data-film="{shown.partition(",")[2]}">'
        f'<img alt="" src="{shown}"><span>{escape(drawn)}</span></button>'
        for drawn, shown in ((drawn, uri(image)) for drawn, image in examples())
    )
    return (
        (HERE / "drop.html")
        .read_text()
        .replace("{thumbnails}", thumbnails)
        .replace("{limit}", str(MAX_FILE_BYTES // 2**20))
    )
