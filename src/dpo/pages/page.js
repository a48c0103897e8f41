// Draws every figure of the page's data block; the policy of the page allows this script by its hash alone.
const figures = JSON.parse(document.getElementById("figures").textContent);
const narrow = window.innerWidth < 560;
const dark = window.matchMedia("(prefers-color-scheme: dark)");

// What the scheme decides; lines and marks have colours that stand out on both.
function scheme() {
  const [ink, line] = dark.matches ? ["#e6edf3", "#343d48"] : ["#1f2328", "#e4e8ec"];
  const colours = { "font.color": ink, paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)" };
  colours["hoverlabel.bgcolor"] = dark.matches ? "#1c232d" : "#ffffff";
  colours["hoverlabel.font.color"] = ink;
  for (const axis of ["xaxis", "yaxis"]) {
    for (const part of ["gridcolor", "zerolinecolor", "linecolor"]) colours[`${axis}.${part}`] = line;
  }
  return colours;
}

async function draw(element, figure) {
  const layout = Object.assign(
    {
      font: { family: "system-ui, sans-serif", size: 12 },
      margin: { t: 8, r: 8, b: 40, l: narrow ? 44 : 56 },
      height: 260,
      legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
      colorway: ["#3b82f6", "#e0702f", "#2a9d5c", "#9a6bea", "#c79a1a"],
      hovermode: "x unified",
    },
    figure.layout,
  );
  await Plotly.newPlot(element, figure.data, layout, { displayModeBar: false, responsive: true });
  await Plotly.relayout(element, scheme());
}

for (const [id, figure] of Object.entries(figures)) {
  const element = document.getElementById(id);
  if (!element) continue;
  draw(element, figure);
  dark.addEventListener("change", () => Plotly.relayout(element, scheme()));
}
