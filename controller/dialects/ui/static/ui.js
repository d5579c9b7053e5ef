// What a page does beside being one: ages go on, and the footer says whether changes are shown as they happen.
// Everything else works without a script. The page is fetched again by htmx, see templates/live.html.
"use strict";

(() => {
  const UNITS = [["d", 86400], ["h", 3600], ["min", 60]];

  function ago(then) {
    const seconds = Math.max(0, Math.round((Date.now() - then) / 1000));
    if (seconds < 5) return "just now";
    for (const [unit, length] of UNITS) {
      if (seconds >= length) return `${Math.floor(seconds / length)} ${unit} ago`;
    }
    return `${seconds} s ago`;
  }

  function tick() {
    for (const moment of document.querySelectorAll("time[data-ago]")) {
      const text = ago(Date.parse(moment.dateTime));
      if (moment.textContent !== text) moment.textContent = text;
    }
  }

  function tell(text, state) {
    const place = document.getElementById("live-state");
    if (!place || place.textContent === text) return;
    place.textContent = text;
    place.dataset.state = state;
  }

  document.addEventListener("htmx:sseOpen", () => tell("Changes are shown as they happen.", "live"));
  document.addEventListener("htmx:sseError", () => tell("Not connected: this page may be out of date.", "away"));

  // A session that is over leads to the sign-in page, which is no part of this one: load it whole.
  document.addEventListener("htmx:beforeSwap", (event) => {
    const place = new URL(event.detail.xhr.responseURL || location.href);
    if (place.pathname !== location.pathname || event.detail.xhr.status >= 400) {
      event.detail.shouldSwap = false;
      if (place.pathname !== location.pathname) location.reload();
    }
  });

  // The end of a log is what is looked for; whoever has scrolled up stays there.
  const log = () => document.querySelector("pre.log");
  let atEnd = true;
  function toEnd() {
    const place = log();
    if (place && atEnd) place.scrollTop = place.scrollHeight;
  }
  document.addEventListener("htmx:beforeSwap", () => {
    const place = log();
    if (place) atEnd = place.scrollHeight - place.scrollTop - place.clientHeight < 40;
  });
  document.addEventListener("htmx:afterSettle", toEnd);
  toEnd();

  // From another site the browser sends no cookie; from this page it does.
  const onward = document.getElementById("onward");
  if (onward) location.replace(onward.href);

  setInterval(tick, 5000);
})();
