"""Notebooks in JupyterLab, in a real browser: `python tests/browser/jupyterlab.py FOLDER [NOTEBOOK ...]`.

Runs each notebook (default: 00 and 02) from top to bottom in headless Chromium, as a reader would, scrolls through all
cells, and says what a reader would see: cells that ran, errors, formulas typeset, players, figures, and while it runs
the line that tells how far a training is (`lines`: how many versions of it). Screenshots go to FOLDER. Ends with 1 if a
cell failed or a formula was left as text. Not part of the test command: it needs Chromium, and minutes. The notebooks
run on copies, with records in FOLDER, so that nothing of the checkout changes.
"""

import base64
import itertools
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from websocket import create_connection  # of jupyter_server's dependencies

ROOT = Path(__file__).parents[2]
SEEN = """(async () => {
  const notebook = jupyterapp.shell.currentWidget.content, seen = {formulas: 0, raw: 0, players: 0, figures: 0};
  for (let i = 0; i < notebook.widgets.length; i++) {
    await notebook.scrollToItem(i); await new Promise(done => setTimeout(done, 150));
    const node = notebook.widgets[i].node, text = node.querySelector('.jp-RenderedMarkdown')?.innerText ?? '';
    seen.formulas += node.querySelectorAll('mjx-container').length; seen.raw += /\\$[^$]+\\$/.test(text) ? 1 : 0;
    seen.players += node.querySelectorAll('audio').length;
    seen.figures += node.querySelectorAll('.jp-OutputArea img').length;
  }
  const code = notebook.widgets.filter(each => each.model.type === 'code');
  const outputs = code.flatMap(each => each.model.outputs.toJSON());
  return JSON.stringify({cells: code.length, ran: code.filter(each => each.model.executionCount).length,
    errors: outputs.filter(each => each.output_type === 'error').map(each => each.evalue), ...seen});
})()"""
READY = "Boolean(globalThis.jupyterapp?.shell.currentWidget?.context?.sessionContext.session?.kernel)"
BUSY = """(() => {
  const panel = jupyterapp.shell.currentWidget;
  const cells = panel.content.widgets.filter(each => each.model.type === 'code');
  const left = cells.filter(each => each.model.sharedModel.source && !each.model.executionCount);
  return `${panel.context.sessionContext.session.kernel.status} ${left.length}`;
})()"""


# The output that says how far a training is, scrolled to; "" where there is none at the moment.
LINE = r"""(async () => {
  const notebook = jupyterapp.shell.currentWidget.content, going = /(epoch|utterance|batch) \d+ of \d+/;
  const said = cell => cell.model.type === 'code' ? cell.model.outputs.toJSON().flatMap(each => each.data ?
    String(each.data['text/plain'] ?? '') : []).filter(text => going.test(text)) : [];
  const place = notebook.widgets.findIndex(cell => said(cell).length);
  if (place < 0) return '';
  await notebook.scrollToItem(place, 'center');
  return said(notebook.widgets[place])[0];
})()"""


class Page:
    """One tab, by the DevTools protocol."""

    def __init__(self, port: int, url: str) -> None:
        request = urllib.request.Request(f"http://127.0.0.1:{port}/json/new?{url}", method="PUT")
        about = json.load(urllib.request.urlopen(request))
        self.socket = create_connection(about["webSocketDebuggerUrl"], timeout=600, suppress_origin=True)
        self.numbers = itertools.count(1)

    def call(self, method: str, **given: object) -> dict:
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": given}))
        while (answer := json.loads(self.socket.recv())).get("id") != number:
            pass
        return answer["result"]

    def value(self, code: str) -> object:
        found = self.call("Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True)
        return found["result"].get("value")

    def wait(self, code: str, wanted: object, minutes: float) -> None:
        end = time.monotonic() + 60 * minutes
        while self.value(code) != wanted:
            if time.monotonic() > end:
                raise TimeoutError(f"{code} was not {wanted!r} after {minutes:g} minutes")
            time.sleep(1)

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))


def started(command: list[str], wanted: str, log: Path, **more: object) -> tuple[subprocess.Popen, str]:
    """The process, once a line of its log holds `wanted`, and that line."""
    process = subprocess.Popen(command, stdout=log.open("w"), stderr=subprocess.STDOUT, **more)
    for _ in range(120):
        time.sleep(0.5)
        for line in log.read_text().splitlines():
            if wanted in line:
                return process, line
    raise TimeoutError(f"{command[0]} did not start: {log}")


def watched(page: Page, file: Path, minutes: float) -> set[str]:
    """Every version of the line that was seen until all cells have run; a picture with one of them goes to the file."""
    lines, end = set(), time.monotonic() + 60 * minutes
    while page.value(BUSY) != "idle 0":
        if time.monotonic() > end:
            raise TimeoutError(f"{file.stem} after {minutes:g} minutes")
        if (line := page.value(LINE)) and line not in lines:
            lines.add(line)
            if len(lines) in (2, 20):
                time.sleep(0.3)
                page.picture(file)
        time.sleep(1)
    return lines


def main(folder: Path, *names: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    books = [next(ROOT.glob(f"notebooks/{name}*.ipynb")) for name in names or ("00", "02")]
    for book in books:
        shutil.copy(book, folder)
    environment = os.environ | {"SER_KD_RESULTS": str(folder.resolve() / "results")}
    options = ["--no-browser", "--allow-root", "--ServerApp.token=", "--LabApp.expose_app_in_browser=True", "--port=0"]
    lab, line = started([sys.executable, "-m", "jupyterlab", *options], "http://127.0.0.1", folder / "lab.log",
                        cwd=folder, env=environment)  # fmt: skip
    place = line[line.index("http://") :].split("/lab")[0]
    chromium = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0",
                "--window-size=1300,1000", f"--user-data-dir={folder.resolve() / 'browser'}"]  # fmt: skip
    browser, line = started(chromium, "DevTools listening on", folder / "browser.log")
    failed = False
    try:
        for book in books:
            page = Page(int(line.split(":")[2].split("/")[0]), f"{place}/lab/tree/{book.name}?reset")
            page.wait(READY, True, 3)
            began = time.monotonic()
            page.value("jupyterapp.commands.execute('notebook:restart-run-all', {}); 0")
            time.sleep(3)
            page.value("document.querySelector('.jp-Dialog .jp-mod-accept')?.click(); 0")  # yes, restart
            time.sleep(3)
            page.picture(folder / f"{book.stem}-running.png")
            lines = watched(page, folder / f"{book.stem}-running.png", 30)
            seen = json.loads(page.value(SEEN)) | {"lines": len(lines)}
            page.picture(folder / f"{book.stem}-end.png")
            print(book.name, f"{time.monotonic() - began:.0f} s", seen, flush=True)
            failed |= bool(seen["errors"] or seen["raw"]) or seen["ran"] < seen["cells"] or not seen["formulas"]
    finally:
        browser.terminate()
        lab.terminate()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), *sys.argv[2:]))
