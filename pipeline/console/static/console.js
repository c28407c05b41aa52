// Keys, drafts, live rows and charts of the console's pages.
(() => {
  "use strict";
  const find = (selector, root = document) => root.querySelector(selector);
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  // A style attribute would be refused by the policy of the pages.
  htmx.config.attributesToSettle = ["class"];
  // What is swapped in works at once: a key pressed in between would be lost.
  htmx.config.defaultSettleDelay = 0;
  const changed = new Set(), UNKNOWN = "?";
  let paused = false, busy = 0, waitingKey = null;

  // --- Changes of others: shown at once, unless somebody would lose the row at hand --------------------------------
  const rows = () => find("#rows");
  const isHeld = () => {
    const part = rows();
    return find("table", part)?.matches(":hover") || part.contains(document.activeElement)
      || find("input:checked", part) !== null || Boolean(find("[name=reason]", part)?.value);
  };
  const showChanges = () => {
    const bar = find("#changes");
    if (!bar) return;
    const known = changed.size - changed.has(UNKNOWN);
    const count = known ? `${known} case${known === 1 ? "" : "s"} changed` : "Cases may have changed";
    find("span", bar).textContent = find("#case") ? "This case has changed - press R to show"
      : `${paused ? "Paused: " : ""}${count} - press R to show`;
    bar.hidden = changed.size === 0;
  };
  const note = (ids) => { ids.forEach((id) => changed.add(id)); showChanges(); };
  const show = () => {
    const page = find("#case");
    if (page) htmx.ajax("GET", page.dataset.url, { target: "#case", swap: "outerHTML" });
    else if (rows()) htmx.trigger(rows(), "show");
  };
  // Rows that somebody has come to while they were fetched stay, unless it was asked for them.
  let asked = false;
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { target, requestConfig } = event.detail;
    if (target !== rows() || requestConfig.verb !== "get") return;
    if (!asked && isHeld()) {
      event.detail.shouldSwap = false;
      note(requestConfig.triggeringEvent?.detail?.data ?? [UNKNOWN]);
    }
    asked = false;
  });
  const showOnceFree = () => setTimeout(() => { if (changed.size && !paused && rows() && !isHeld()) show(); });

  document.addEventListener("htmx:beforeRequest", (event) => {
    const { elt, requestConfig } = event.detail;
    if (elt === rows() && requestConfig.triggeringEvent?.type === "cases") {
      if (paused || document.hidden || isHeld()) {
        event.preventDefault();
        note(requestConfig.triggeringEvent.detail.data);
        return;
      }
    }
    if (requestConfig.verb === "post") { busy += 1; tell(""); }
  });
  document.addEventListener("cases", async (event) => {
    const page = find("#case");
    if (!page || busy || !event.detail.data.includes(page.dataset.case)) return;
    const answer = await fetch(page.dataset.url, { headers: { "HX-Request": "true" } });
    if (!answer.ok || find("#case") !== page || busy) return;
    const newest = new DOMParser().parseFromString(await answer.text(), "text/html").getElementById("case");
    if (newest && newest.dataset.version !== page.dataset.version) note([page.dataset.case]);
  });
  document.addEventListener("connection", (event) => {
    document.body.classList.toggle("offline", !event.detail.data.open);
    const state = find("[data-connection]");
    if (state) state.textContent = event.detail.data.open ? (paused ? "Paused" : "Live") : "Not connected, trying again";
    if (!event.detail.data.open) return;
    // What changed between the page and its connection, the first one too, was reported to nobody.
    if (find("#case")) document.body.dispatchEvent(new CustomEvent("cases", { bubbles: true, detail: { data: [find("#case").dataset.case] } }));
    else if (rows() && !paused && !isHeld()) show();
    else if (rows() && event.detail.data.again) note([UNKNOWN]);
  });
  document.addEventListener("visibilitychange", showOnceFree);
  document.addEventListener("focusout", showOnceFree);
  document.addEventListener("mouseout", showOnceFree);

  // --- Swaps: ticks, focus and drafts stay ------------------------------------------------------------------------
  let kept = null;
  document.addEventListener("htmx:beforeSwap", (event) => {
    const { requestConfig, target, xhr } = event.detail;
    if (!event.detail.shouldSwap || (target.id !== "rows" && target.id !== "case")) return;
    const ticked = requestConfig.verb === "get" ? all("input[type=checkbox]", target) : [];
    kept = {
      ticks: new Map(ticked.map((box) => [box.value, box.checked])),
      row: document.activeElement?.closest("tr[data-case]")?.dataset.case,
    };
    const form = requestConfig.elt;
    if (form.matches?.("[data-draft]") && xhr.status < 300
        && sessionStorage.getItem(draftKey(form)) === requestConfig.formData.get("text")) {
      sessionStorage.removeItem(draftKey(form));
    }
    changed.clear();
    showChanges();
  });
  document.addEventListener("htmx:afterSettle", (event) => {
    const part = find("#case") ?? rows();
    if (kept && part) {
      all("input[type=checkbox]", part).forEach((box) => {
        if (kept.ticks.has(box.value)) box.checked = kept.ticks.get(box.value);
      });
      if (kept.row) find(`tr[data-case="${CSS.escape(kept.row)}"] a`, part)?.focus();
      kept = null;
      begin(part);
      find("[data-done]", part)?.focus();
    }
  });

  const draftKey = (form) => `draft:${find("meta[name=account]")?.content}:${form.dataset.draft}`;
  document.addEventListener("input", (event) => {
    const form = event.target.closest("[data-draft]");
    if (form) sessionStorage.setItem(draftKey(form), event.target.value);
  });

  // --- What became of a form ---------------------------------------------------------------------------------------
  const tell = (text) => {
    const notice = find("dialog[open] [data-notice]") ?? find("#notice");
    if (!notice) return;
    notice.textContent = text;
    notice.classList.toggle("error", text !== "");
  };
  const isPost = (event) => event.detail.requestConfig?.verb === "post";
  document.addEventListener("htmx:responseError", (event) => {
    if (!isPost(event)) return;
    const page = new DOMParser().parseFromString(event.detail.xhr.responseText, "text/html");
    tell(find("[role=alert], h1, body", page)?.textContent.trim() || `It was refused (${event.detail.xhr.status}).`);
  });
  document.addEventListener("htmx:sendError", (event) => {
    if (isPost(event)) tell("The console does not answer. Try again: what you typed is kept.");
  });
  document.addEventListener("htmx:afterRequest", (event) => {
    if (!isPost(event)) return;
    busy = Math.max(busy - 1, 0);
    const key = waitingKey;
    waitingKey = null;
    if (key && event.detail.successful) setTimeout(() => press(key), 50);
  });

  // --- Keys --------------------------------------------------------------------------------------------------------
  const press = (key) => {
    const wanted = all(`[data-key="${CSS.escape(key)}"]`).find((each) => each.checkVisibility() && !each.disabled);
    if (!wanted) return false;
    if (wanted.matches("input")) wanted.focus(); else wanted.click();
    return true;
  };
  const move = (step) => {
    const links = all("table.cases tbody th a");
    const at = links.findIndex((link) => link.closest("tr").contains(document.activeElement));
    const next = links[at < 0 ? 0 : Math.min(Math.max(at + step, 0), links.length - 1)];
    next?.focus();
    return Boolean(next);
  };
  document.addEventListener("keydown", (event) => {
    const field = event.target.closest?.("textarea, select, input:not([type=checkbox])");
    if (field) {
      if (event.key === "Escape") field.blur();
      if (event.key === "Enter" && event.ctrlKey) field.form?.requestSubmit();
      return;
    }
    if (event.ctrlKey || event.metaKey || event.altKey || event.repeat && !/^[jk]|^Arrow/.test(event.key)) return;
    if (find("dialog[open]")) return;
    const key = event.key.toLowerCase();
    const steps = { j: 1, arrowdown: 1, k: -1, arrowup: -1 };
    let done = false;
    if (key in steps) done = move(steps[key]);
    else if (key === "/" && find("#search")) { find("#search").focus(); done = true; }
    else if (busy && key === "n") { waitingKey = key; done = true; }
    else if (key.length === 1) done = press(key);
    if (done) event.preventDefault();
  });
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    if (button.dataset.open) find(`#${button.dataset.open}`).showModal();
    if ("help" in button.dataset) find("#help").showModal();
    if ("close" in button.dataset) button.closest("dialog").close();
    if (button.dataset.key === "r") { asked = true; show(); }
    if ("pause" in button.dataset) {
      paused = !paused;
      button.setAttribute("aria-pressed", String(paused));
      button.firstChild.textContent = paused ? "Go on " : "Pause ";
      find("[data-connection]").textContent = paused ? "Paused" : "Live";
      if (paused) showChanges(); else showOnceFree();
    }
  });

  // --- Charts ------------------------------------------------------------------------------------------------------
  const SHAPES = { fraud: "cross", legitimate: "square", alert: "triangle", "": "circle" };
  const drawMarks = (plot, points, colour) => {
    const { ctx } = plot, size = 4.5 * devicePixelRatio;
    ctx.save();
    ctx.lineWidth = 1.75 * devicePixelRatio;
    points.forEach((point) => {
      const x = plot.valToPos(point.t, "x", true), y = plot.valToPos(point.y, "y", true);
      ctx.strokeStyle = ctx.fillStyle = colour(point.mark ? `--${point.mark}` : "--quiet");
      ctx.beginPath();
      if (SHAPES[point.mark] === "cross") {
        ctx.moveTo(x - size, y - size); ctx.lineTo(x + size, y + size);
        ctx.moveTo(x + size, y - size); ctx.lineTo(x - size, y + size);
        ctx.stroke();
      } else if (SHAPES[point.mark] === "triangle") {
        ctx.moveTo(x, y - 1.2 * size); ctx.lineTo(x + 1.2 * size, y + size); ctx.lineTo(x - 1.2 * size, y + size);
        ctx.fill();
      } else if (SHAPES[point.mark] === "square") {
        ctx.fillRect(x - 0.8 * size, y - 0.8 * size, 1.6 * size, 1.6 * size);
      } else {
        ctx.arc(x, y, 0.7 * size, 0, 2 * Math.PI);
        ctx.stroke();
      }
    });
    ctx.restore();
  };
  const clock = (points) => {
    const days = (points.at(-1).t - points[0].t) / 86400;
    return (seconds) => new Date(seconds * 1000).toISOString().slice(...(days > 2 ? [5, 10] : [11, 16]));
  };
  const powers = (plot, splits) => splits.map((value) => (plot.scales.y.distr !== 3 || Number.isInteger(Math.log10(value)) ? value : null));
  const drawChart = (host, points) => {
    host.replaceChildren();
    if (!points.length || !host.clientWidth) return;
    const css = getComputedStyle(document.documentElement);
    const colour = (name) => css.getPropertyValue(name).trim();
    const amounts = points.map((point) => point.y), least = Math.min(...amounts), most = Math.max(...amounts);
    const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false },
      font: "11px system-ui, sans-serif" };
    const reading = find(`[data-reading="${host.dataset.chart}"]`);
    new uPlot({
      width: host.clientWidth, height: host.clientHeight, legend: { show: false }, padding: [8, 8, 0, 0],
      tzDate: (seconds) => uPlot.tzDate(new Date(seconds * 1000), "Etc/UTC"),
      cursor: { y: false, points: { show: false }, drag: { x: false, y: false } },
      scales: {
        x: { range: (_, from, to) => { const gap = (to - from) * 0.03 || 43200; return [from - gap, to + gap]; } },
        y: least > 0 && most / least > 50 ? { distr: 3 } : { range: [0, (most || 1) * 1.1] },
      },
      series: [{}, { paths: () => null, points: { show: false } }],
      axes: [{ ...axis, size: 24, values: (_, splits) => splits.map(clock(points)) }, { ...axis, size: 52, grid: { ...axis.grid, filter: powers } }],
      hooks: {
        draw: [(plot) => drawMarks(plot, points, colour)],
        setCursor: [(plot) => { reading.textContent = points[plot.cursor.idx]?.text ?? ""; }],
      },
    }, [points.map((point) => point.t), amounts], host);
  };
  const drawCharts = () => {
    const data = find("#charts");
    if (data && window.uPlot) {
      const series = JSON.parse(data.textContent);
      all("[data-chart]").forEach((host) => drawChart(host, series[host.dataset.chart]));
    }
  };

  // --- Begin -------------------------------------------------------------------------------------------------------
  const begin = (part) => {
    all("[data-script]", part).forEach((each) => { each.hidden = false; });
    all("[data-draft]", part).forEach((form) => {
      find("textarea", form).value = sessionStorage.getItem(draftKey(form)) ?? "";
    });
    drawCharts();
  };
  // The charts' script comes after this one.
  addEventListener("DOMContentLoaded", () => begin(document));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
  let resized;
  addEventListener("resize", () => { clearTimeout(resized); resized = setTimeout(drawCharts, 150); });
})();
