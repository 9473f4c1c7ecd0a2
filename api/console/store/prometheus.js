// Prometheus' text format, as far as counters and gauges go: values by name and labels.

import { text } from "../api.js";

const SAMPLE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

export async function readMetrics() {
  const samples = [];
  for (const line of (await text("metrics")).split("\n")) {
    const found = line.startsWith("#") ? null : line.match(SAMPLE);
    if (!found) continue;
    samples.push({ name: found[1], labels: Object.fromEntries([...(found[2] ?? "").matchAll(LABEL)].map(([, key, value]) => [key, value])), value: Number(found[3]) });
  }
  return {
    // The sum of a metric's samples that have these labels; 0 where there is none.
    sum: (name, labels = {}) => samples
      .filter((each) => each.name === name && Object.entries(labels).every(([key, value]) => each.labels[key] === value))
      .reduce((all, each) => all + each.value, 0),
    // Of each value of a label, that sum.
    by(name, label, labels = {}) {
      const values = [...new Set(samples.filter((each) => each.name === name).map((each) => each.labels[label]))];
      return Object.fromEntries(values.map((value) => [value, this.sum(name, { ...labels, [label]: value })]));
    },
  };
}
