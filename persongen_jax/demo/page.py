"""The page: its tabs, its looks, and how it is served."""

from typing import Any

import gradio as gr

from persongen_jax.demo import compare_tab, generate_tab, people_tab, watch_tab
from persongen_jax.demo.site import Site

TITLE = "persongen_jax"
# Fonts of the visitor's own machine: Gradio's usual ones come from outside.
FONTS = {
    "font": ["system-ui", "sans-serif"],
    "font_mono": ["ui-monospace", "monospace"],
}
CSS = ".said ul { margin: 0; padding-left: 1.2em } footer { display: none !important }"
DELETED = (600, 3600)  # every so many seconds, uploads of at least that age


def build(site: Site) -> gr.Blocks:
    """All of it; ``launch`` serves it."""
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=DELETED) as page:
        gr.Markdown("# persongen_jax")
        with gr.Tab("Generate"):
            generate_tab.build(site)
        with gr.Tab("Two people"):
            people_tab.build(site)
        with gr.Tab("Compare"):
            compare_tab.build(site)
        with gr.Tab("Watch a training"):
            watch_tab.build(site)
        page.unload(site.sessions.leave)
    return page


def launch(
    page: gr.Blocks,
    *,
    host: str,
    port: int | None,
    waiting: int,
    largest: str,
    auth: list[tuple[str, str]] | None = None,
    block: bool = True,
) -> Any:
    """Serves the page; returns (app, local address, None).

    Args:
        waiting: requests that may wait; further ones are refused.
        largest: upload, such as "20mb".
        auth: who may enter, (user, password); None: everybody who reaches the port.
        block: until it is interrupted.
    """
    page.queue(max_size=waiting, default_concurrency_limit=4)
    theme = gr.themes.Default(**{name: list(fonts) for name, fonts in FONTS.items()})
    return page.launch(
        server_name=host,
        server_port=port,
        share=False,
        auth=auth,
        max_file_size=largest,
        prevent_thread_lock=not block,
        quiet=True,
        ssr_mode=False,
        pwa=False,
        enable_monitoring=False,
        run_history=False,
        theme=theme,
        css=CSS,
        footer_links=["api"],
        strict_cors=True,
    )
