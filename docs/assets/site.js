// A button on each block of code that copies it; of an example with >>> the program alone, without what it prints.
const program = (text) =>
  !text.startsWith(">>> ")
    ? text
    : text
        .split("\n")
        .filter((line) => /^(>>>|\.\.\.)( |$)/.test(line))
        .map((line) => line.slice(4))
        .join("\n") + "\n";

for (const code of document.querySelectorAll(".highlight pre > code")) {
  const button = document.createElement("button");
  button.className = "copy";
  button.type = "button";
  button.textContent = "copy";
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(program(code.textContent));
    button.textContent = "copied";
    setTimeout(() => (button.textContent = "copy"), 1500);
  });
  code.closest(".highlight").append(button);
}
