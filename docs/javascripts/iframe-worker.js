// Search in pages that were opened from a folder: browsers start no workers for file: addresses, so the search runs in
// a hidden frame instead, which is given the functions of a worker that it uses. The plugin `offline` would otherwise load
// one from another server: it looks for this file name.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super();
      const frame = document.body.appendChild(Object.assign(document.createElement("iframe"), {hidden: true}));
      this.scope = frame.contentWindow;
      const load = (src) =>
        new Promise((resolve, reject) => {
          const script = this.scope.document.createElement("script");
          this.scope.document.body.append(Object.assign(script, {src, onload: resolve, onerror: reject}));
        });
      this.scope.postMessage = (data) => this.dispatchEvent(new MessageEvent("message", {data}));
      this.scope.importScripts = (...urls) =>
        urls.reduce((earlier, src) => earlier.then(() => load(src)), Promise.resolve());
      this.loaded = load(url);
    }

    postMessage(data) {
      this.loaded.then(() => this.scope.dispatchEvent(new MessageEvent("message", {data})));
    }
  };
}
