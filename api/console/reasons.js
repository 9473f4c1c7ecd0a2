// Why a prompt was not blended, in plain words. The report's own words stand below them.

const REASONS = [
  [/^asked for: reuse is none/, "You asked for a full prefill.", "Nothing stored was used, and vLLM’s own prefix cache was kept out of it, so that this is the plain baseline."],
  [/^asked for: reuse is prefix_cache/, "You asked for vLLM’s own prefix cache alone.", "Only tokens at the prompt’s very beginning can come from it."],
  [/holds no passages/, "Nothing was retrieved, so there was nothing to blend.", "The collection may be empty, or still being read."],
  [/no control channel/, "vLLM runs without kvblend’s connector.", "It answers, but nothing can be reused. Start it by `kvblend serve`, or give it the connector."],
  [/no recompute ratio below/, "This model cannot be blended closely enough.", "Its calibration found no ratio that keeps answers within the target, so they are computed in full."],
  [/^blending cannot pay/, "A full prefill was expected to be as fast.", "Short prompts and few stored tokens cost more to blend than they save."],
  [/no passage of this prompt is in the store/, "None of these passages’ KV is stored yet.", "It is made in the background after this answer; the next question that meets them reuses it."],
  [/gave no report/, "vLLM’s connector did not tell what it did.", "The answer is right; how its context came about is not known."],
  [/could not be found out/, "The store could not be read.", "vLLM computed the whole context; its log says what went wrong."],
  [/^the blend failed|could not be begun/, "The blend failed, and vLLM computed everything itself.", "The answer is right, only later; vLLM’s log says what went wrong."],
];

export function plainReason(reason) {
  const [, title, more] = REASONS.find(([pattern]) => pattern.test(reason)) ?? [null, "The whole context was computed by vLLM.", ""];
  return { title, more };
}

export const OUTCOMES = {
  blended: "Blended",
  prefix_hit: "From vLLM’s own prefix cache",
  prefilled: "Prefilled in full",
};
