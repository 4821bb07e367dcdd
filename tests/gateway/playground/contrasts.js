/* WCAG's contrast of every text that is shown, against the nearest background that is not transparent: [text, ratio]. */
() => {
  const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const rgb = (colour) => {
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = colour;
    canvas.fillRect(0, 0, 1, 1);
    return [...canvas.getImageData(0, 0, 1, 1).data];
  };
  const linear = (one) => (one <= 0.03928 ? one / 12.92 : ((one + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * linear(r / 255) + 0.7152 * linear(g / 255) + 0.0722 * linear(b / 255);
  const behind = (node) => {
    for (let at = node; at; at = at.parentElement) {
      const found = rgb(getComputedStyle(at).backgroundColor);
      if (found[3] === 255) return found;
    }
    return [255, 255, 255, 255];
  };
  const ratio = (colour, node) => {
    const [one, other] = [light(rgb(colour)), light(behind(node))];
    return (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
  };
  const told = [];
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const [text, node] = [texts.currentNode.textContent.trim(), texts.currentNode.parentElement];
    if (!text || !node.checkVisibility() || node.closest(".unseen, svg, option")) continue;
    told.push([text.slice(0, 40), ratio(getComputedStyle(node).color, node)]);
  }
  for (const node of document.querySelectorAll("input, textarea")) {
    if (!node.checkVisibility() || !node.placeholder) continue;
    told.push([node.placeholder, ratio(getComputedStyle(node, "::placeholder").color, node)]);
  }
  return told;
}
