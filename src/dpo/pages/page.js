// Draws every figure of the page's data block; the policy of the page allows this script by its hash alone.
const figures = JSON.parse(document.getElementById("figures").textContent);
const narrow = window.innerWidth < 560;
for (const [id, figure] of Object.entries(figures)) {
  const element = document.getElementById(id);
  if (!element) continue;
  const layout = Object.assign(
    {
      font: { family: "system-ui, sans-serif", size: 12 },
      margin: { t: 8, r: 8, b: 40, l: narrow ? 44 : 56 },
      height: 260,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      colorway: ["#1f6feb", "#d1581a", "#2a9d5c", "#8250df", "#b58900"],
      hovermode: "x unified",
    },
    figure.layout,
  );
  Plotly.newPlot(element, figure.data, layout, { displayModeBar: false, responsive: true });
}
