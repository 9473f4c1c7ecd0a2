// Numbers as people read them. A plain space between number and unit would break lines: it is a narrow no-break one.

const NARROW = "\u202f";
const whole = new Intl.NumberFormat("en");

export const count = (number) => whole.format(number);
export const counted = (number, one, many = `${one}s`) => `${count(number)} ${number === 1 ? one : many}`;

export function milliseconds(ms) {
  if (ms >= 10_000) return `${(ms / 1000).toFixed(1)}${NARROW}s`;
  if (ms >= 1000) return `${(ms / 1000).toFixed(2)}${NARROW}s`;
  return `${ms >= 100 ? ms.toFixed(0) : ms.toFixed(1)}${NARROW}ms`;
}

function scaled(number, step, units) {
  let unit = 0;
  while (number >= step && unit < units.length - 1) [number, unit] = [number / step, unit + 1];
  return `${unit === 0 || number >= 100 ? Math.round(number) : number.toFixed(1)}${NARROW}${units[unit]}`;
}

export const bytes = (number) => scaled(number, 1024, ["B", "KiB", "MiB", "GiB", "TiB"]);
export const operations = (number) => scaled(number, 1000, ["FLOPs", "kFLOPs", "MFLOPs", "GFLOPs", "TFLOPs", "PFLOPs"]);

export const share = (part, all) => (all > 0 ? `${((100 * part) / all).toFixed(part > 0 && part < all / 100 ? 2 : part < all / 10 ? 1 : 0)}%` : "–");
export const significant = (number) => (number === 0 ? "0" : Number(number.toPrecision(2)).toString());

export function ago(seconds) {
  const passed = Date.now() / 1000 - seconds;
  for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (passed >= size) return counted(Math.floor(passed / size), unit) + " ago";
  }
  return "just now";
}

export function duration(seconds) {
  for (const [unit, size] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    if (seconds >= size) return counted(Number((seconds / size).toPrecision(2)), unit);
  }
  return counted(Number(seconds.toPrecision(2)), "second");
}

export const day = (seconds) => new Date(seconds * 1000).toLocaleString("en", { dateStyle: "medium", timeStyle: "short" });
