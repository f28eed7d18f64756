// Part of every page: titles, names for screen readers, local times, buttons that copy the line
// before them, a question before a job is cancelled, and the form in the address.

const COPIED_MSECS = 2000;

const copied = async (line) => {
  if (navigator.clipboard) return navigator.clipboard.writeText(line.textContent);
  // Browsers offer the clipboard only over HTTPS and on this machine.
  window.getSelection().selectAllChildren(line);
  document.execCommand("copy");
};

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copies]");
  if (!button) return;
  await copied(button.previousElementSibling);
  button.textContent = "Copied";
  window.setTimeout(() => { button.textContent = "Copy"; }, COPIED_MSECS);
});

// A job is cancelled by the second click; the first only asks, until a click elsewhere.
document.addEventListener("click", (event) => {
  const button = event.target.closest("#dq-cancel");
  const asked = document.querySelector("#dq-cancel[data-asked]");
  if (asked && asked !== button) {
    asked.textContent = asked.dataset.asked;
    delete asked.dataset.asked;
  }
  if (!button || asked === button) return;
  event.stopImmediatePropagation();
  button.dataset.asked = button.textContent;
  button.textContent = "Really cancel it?";
}, true);

// Puts a form into the address, beside what Gradio and the Hub keep there (`__theme`).
window.dqWriteAddress = (query) => {
  const fields = new URLSearchParams(query);
  for (const [name, value] of new URLSearchParams(window.location.search)) {
    if (name.startsWith("__")) fields.set(name, value);
  }
  const text = fields.toString().replaceAll("%2F", "/").replaceAll("%2C", ",");
  window.history.replaceState(window.history.state, "", text ? `?${text}` : window.location.pathname);
  // The Hub shows a Space in a frame, and puts this into the address that people share.
  if (window.parent !== window) {
    window.parent.postMessage({ queryString: text }, "https://huggingface.co");
  }
};

const DAY = { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", timeZoneName: "short" };
const CLOCK = { hour: "2-digit", minute: "2-digit", second: "2-digit", hourCycle: "h23" };

const localize = (time) => {
  const at = new Date(time.dateTime);
  time.title = time.textContent;
  const shown = time.hasAttribute("data-clock") ? CLOCK : DAY;
  time.textContent = at.toLocaleString(undefined, shown);
};

// Adds what Gradio leaves out. Runs after every change, and changes nothing the second time.
const complete = () => {
  const heading = document.querySelector("h1");
  const title = heading ? `${heading.textContent} · dynquant` : document.title;
  if (document.title !== title) document.title = title;
  document.querySelectorAll("time[datetime]:not([title])").forEach(localize);
  document.querySelectorAll("[data-origin]:empty").forEach((place) => {
    place.textContent = window.location.origin;
  });
  document.querySelectorAll("fieldset.block:not([aria-label])").forEach((group) => {
    const name = group.querySelector("[data-testid='block-info']");
    if (name) group.setAttribute("aria-label", name.textContent.trim());
  });
  document.querySelectorAll("button.label-wrap").forEach((fold) => {
    const isOpen = String(fold.classList.contains("open"));
    if (fold.ariaExpanded !== isOpen) fold.ariaExpanded = isOpen;
  });
};

new MutationObserver(complete).observe(document.documentElement, {
  attributeFilter: ["class"], childList: true, subtree: true,
});
