"""A visitor of the page, in a browser."""

from pathlib import Path

from playwright.sync_api import Browser, Page, expect

PATIENCE = 120_000  # milliseconds
ARTEFACTS = Path("outputs/test_demo")


class Visitor:
    """A browser's window on the page; ``outside`` collects what is asked of other machines."""

    def __init__(self, browser: Browser, address: str, **window):
        self.outside: list[str] = []
        window = {"viewport": {"width": 1200, "height": 1000}, **window}
        self.page: Page = browser.new_page(**window)
        self.page.set_default_timeout(PATIENCE)
        self.page.on("request", self._asked)
        self._address = address
        self.page.goto(address)
        self.page.wait_for_selector("#generate")
        # The model's description is there when it is loaded.
        expect(self.page.get_by_text("It reads").first).to_be_visible(timeout=PATIENCE)

    def _asked(self, request):
        if not request.url.startswith((self._address, "data:", "blob:")):
            self.outside.append(request.url)

    def upload(self, file: str, number: int = 0):
        """Into photograph ``number`` of the open tab."""
        tab = self.page.get_by_role("tabpanel")
        inputs = tab.locator('input[type="file"]:not([disabled])')
        inputs.nth(number).set_input_files(file)

    @property
    def said(self):
        """Below the preview of the open tab."""
        return self.page.locator(".said:visible").first

    @property
    def error(self):
        return self.page.locator(".toast-body").first

    def sees_face(self, number: int):
        """That the face of a photograph was found."""
        shown = self.page.get_by_text(f"photograph {number}", exact=True)
        expect(shown.first).to_be_visible(timeout=PATIENCE)

    def wait(self, text: str):
        expect(self.said).to_contain_text(text, timeout=PATIENCE)

    def picture(self, name: str):
        """A screenshot, kept for whoever looks at the tests' results."""
        ARTEFACTS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=ARTEFACTS / f"{name}.png", full_page=True)

    def tab(self, name: str):
        found = self.page.get_by_role("tab", name=name)
        if found.is_visible():
            found.click()
        else:  # behind three dots on a phone
            self.page.locator(".overflow-menu > button").first.click()
            self.page.locator(".overflow-dropdown").get_by_text(name).click()

    def leave(self):
        self.page.close()
