"""The page: its tabs, its looks, and how it is served."""

from typing import Any

from persongen_jax.demo.gate import Gate
from persongen_jax.demo.sessions import sentence
from persongen_jax.demo.site import Site
from persongen_jax.demo.tabs import compare, generate, people, watch

TITLE = "persongen_jax"
# Fonts of the visitor's own machine: Gradio's usual ones come from outside.
FONTS = {
    "font": ["system-ui", "sans-serif"],
    "font_mono": ["ui-monospace", "monospace"],
}
CSS = ".said ul { margin: 0; padding-left: 1.2em } footer { display: none !important }"
MOST_EVENTS = 200  # of all visitors, small ones included; Site.waiting is that of requests
DELETED = (600, 3600)  # every so many seconds, uploads of at least that age


def build(site: Site) -> Any:
    """All of it, Gradio's Blocks; ``launch`` serves it."""
    import gradio as gr

    def leave(visitor: gr.Request):
        site.sessions.leave(visitor)

    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=DELETED) as page:
        gr.Markdown("# persongen_jax")
        with gr.Tab("Generate"):
            generate.build(site)
        with gr.Tab("Two people"):
            people.build(site)
        with gr.Tab("Compare"):
            compare.build(site)
        with gr.Tab("Watch a training"):
            watch.build(site)
        page.unload(leave)
    for block in page.blocks.values():
        _read_files_alone(block)
    return page


def _read_files_alone(block: Any) -> None:
    """Gradio fetches whatever address a client sends in place of a file; this page does not."""
    take = block.async_move_resource_to_block_cache

    async def take_file(path: Any) -> str | None:
        if "://" in str(path):
            raise sentence(ValueError("an address is not fetched: upload the photograph"))
        return await take(path)

    block.async_move_resource_to_block_cache = take_file


def launch(
    page: Any,
    *,
    host: str,
    port: int | None,
    largest: str,
    auth: list[tuple[str, str]] | None = None,
) -> str:
    """Serves the page in a thread; returns its address once it answers.

    ``page.block_thread()`` waits for Ctrl-C.

    Args:
        largest: upload, such as "20mb".
        auth: who may enter, (user, password); None: everybody who reaches the port.
    """
    import gradio as gr
    from starlette.middleware import Middleware

    page.queue(max_size=MOST_EVENTS, default_concurrency_limit=None)
    theme = gr.themes.Default(**{name: list(fonts) for name, fonts in FONTS.items()})
    _, address, _ = page.launch(
        server_name=host,
        server_port=port,
        share=False,
        auth=auth,
        max_file_size=largest,
        prevent_thread_lock=True,
        quiet=True,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        run_history=False,
        theme=theme,
        css=CSS,
        footer_links=["api"],
        strict_cors=True,
        app_kwargs={"middleware": [Middleware(Gate)]},
    )
    return address
