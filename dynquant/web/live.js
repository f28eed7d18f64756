// Keeps the changing part of a page up to date. Runs as Gradio's `js_on_load`:
// `element` is the component, `trigger` tells Gradio when a job changes its state.
// Looks bypass Gradio, whose events cost a hundred times as much.

const LOOK_MSECS = 3000;
const place = element.querySelector("[data-live]");
const form = element.querySelector("form");
let seen = "", phase = "", timer = 0;

const query = () => {
  const fields = new URLSearchParams(window.location.search);
  if (form) for (const [name, value] of new FormData(form)) fields.set(name, value);
  fields.set("seen", seen);
  return fields;
};

const look = async () => {
  window.clearTimeout(timer);
  if (!element.isConnected) return;
  try {
    if (!document.hidden) {
      const asked = query().toString();
      const answer = await fetch(`${place.dataset.live}?${asked}`);
      if (!answer.ok) throw new Error(answer.statusText);
      element.classList.remove("dq-stale");
      // If the fields changed meanwhile, a later answer counts.
      if (answer.status === 200 && asked === query().toString()) {
        const found = await answer.json();
        seen = found.mark;
        place.innerHTML = found.html;
        if (found.phase !== phase) {
          phase = found.phase;
          trigger("click");
        }
      }
    }
  } catch {
    element.classList.add("dq-stale");
  }
  window.clearTimeout(timer);
  timer = window.setTimeout(look, LOOK_MSECS);
};

if (form) {
  form.addEventListener("submit", (event) => event.preventDefault());
  form.addEventListener("input", look);
}
document.addEventListener("visibilitychange", look);
window.addEventListener("dq-look", look);
look();
