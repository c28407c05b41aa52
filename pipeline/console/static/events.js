// Events of the server, over one connection for all tabs of a browser: as a page's script it starts itself as the
// shared worker. A browser without shared workers gets a connection for each page.
(() => {
  "use strict";
  const connect = (send) => {
    let source, lost = false;
    const open = () => {
      source = new EventSource("/events");
      source.onopen = () => { send({ name: "connection", data: { open: true, again: lost } }); lost = false; };
      for (const name of ["cases", "status"]) {
        source.addEventListener(name, (event) => send({ name, data: JSON.parse(event.data) }));
      }
      source.onerror = () => {
        lost = true;
        send({ name: "connection", data: { open: false } });
        // An answer that is no stream ends it for good, such as that of a session that has ended.
        if (source.readyState === EventSource.CLOSED) setTimeout(open, 3000);
      };
    };
    open();
  };

  if (typeof document === "undefined") {
    const ports = new Set();
    let newest = null;
    self.onconnect = (event) => {
      const port = event.ports[0];
      port.onmessage = () => ports.delete(port);
      if (!ports.size && !newest) {
        connect((message) => {
          if (message.name === "connection") newest = message;
          ports.forEach((each) => each.postMessage(message));
        });
      }
      ports.add(port);
      if (newest) port.postMessage({ name: "connection", data: { open: newest.data.open } });
    };
    return;
  }

  const dispatch = ({ name, data }) => document.body.dispatchEvent(new CustomEvent(name, { bubbles: true, detail: { data } }));
  const address = document.currentScript.src;
  if (typeof SharedWorker === "undefined") {
    connect(dispatch);
    return;
  }
  const listen = () => {
    const { port } = new SharedWorker(address);
    port.onmessage = (event) => dispatch(event.data);
    addEventListener("pagehide", () => port.postMessage("bye"), { once: true });
  };
  listen();
  addEventListener("pageshow", (event) => { if (event.persisted) listen(); });
})();
