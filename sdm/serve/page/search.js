/* The search box: suggestions while typing, for mouse, touch, keyboard and screen reader alike. */

const PAUSE = 120; // milliseconds after the last key before names are requested

/** Wire up the form. `suggest(text, signal)` is a promise of names; `choose(name)` is called with the selected one. */
export function searchBox({ form, input, list, suggest, choose }) {
  let items = [], active = -1, timer = 0, request = null, shownFor = null;

  function close() {
    list.hidden = true;
    list.replaceChildren();
    items = [];
    active = -1;
    shownFor = null;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function stop() {
    clearTimeout(timer);
    request?.abort();
    request = null;
  }

  function mark(index) {
    active = index;
    [...list.children].forEach((option, k) => {
      const chosen = k === index;
      option.setAttribute("aria-selected", String(chosen));
      if (chosen) {
        input.setAttribute("aria-activedescendant", option.id);
        option.scrollIntoView({ block: "nearest" });
      }
    });
    if (index < 0) { input.removeAttribute("aria-activedescendant"); }
  }

  function pick(name) {
    stop();
    close();
    input.value = name;
    choose(name);
  }

  function show(found, text) {
    close();
    items = found;
    shownFor = text;
    found.forEach((item, k) => {
      const option = document.createElement("li");
      option.id = `option-${k}`;
      option.setAttribute("role", "option");
      option.setAttribute("aria-selected", "false");
      const name = document.createElement("span");
      name.className = item.rank === "species" || item.rank === "genus" ? "taxon" : "";
      name.textContent = item.name;
      option.append(name);
      const rest = [item.rank === "species" ? "" : item.rank, item.common, item.matched && `also ${item.matched}`];
      const about = document.createElement("span");
      about.className = "about";
      about.textContent = rest.filter(Boolean).join(" · ");
      option.append(about);
      // Otherwise the input would lose the focus, and the list would close.
      option.addEventListener("pointerdown", (event) => event.preventDefault());
      option.addEventListener("click", () => pick(item.name));
      list.append(option);
    });
    if (!found.length) {
      const none = document.createElement("li");
      none.className = "none";
      none.textContent = "no name like this in the models of this index";
      list.append(none);
    }
    list.hidden = false;
    input.setAttribute("aria-expanded", String(found.length > 0));
  }

  async function look() {
    const text = input.value.trim();
    request?.abort();
    if (!text) { close(); return; }
    const mine = request = new AbortController();
    try {
      const found = await suggest(text, mine.signal);
      if (mine === request && document.activeElement === input) { show(found, text); }
    } catch (error) {
      if (error.name !== "AbortError") { close(); }
    }
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    timer = setTimeout(look, PAUSE);
  });
  input.addEventListener("focus", () => input.select());
  input.addEventListener("blur", () => { stop(); close(); });
  input.addEventListener("keydown", (event) => {
    if (event.key === "Escape") {
      if (!list.hidden) { event.preventDefault(); }
      stop();
      close();
    } else if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) { look(); return; }
      if (!items.length) { return; }
      const step = event.key === "ArrowDown" ? 1 : -1;
      // The position before the first is the text as typed.
      mark((active + 1 + step + items.length + 1) % (items.length + 1) - 1);
    }
  });
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = input.value.trim();
    if (active >= 0) {
      pick(items[active].name);
    } else if (text) {
      // An exact name, else the only suggestion for the text, else the text: the server then says what is wrong.
      const exact = items.find((item) => [item.name, item.common].some((n) => n.toLowerCase() === text.toLowerCase()));
      pick(exact ? exact.name : shownFor === text && items.length === 1 ? items[0].name : text);
    }
  });
}
