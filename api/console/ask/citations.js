// Which passage a sentence of an answer stands on.
//
// A model that writes [n] says it itself: n is the passage's place in its prompt. For one that does not, each sentence
// gets the passage that shares most of its telling words: those that are long or rare among the passages. That is a
// guess of this page, and the page says so.

const segments = (text, granularity) => [...new Intl.Segmenter(undefined, { granularity }).segment(text)];
const OWN = /(?<=(?:^|[^\w\])])(?:\[\d{1,2}\])*)\[(\d{1,2})\]/g; // [1][2] are two citations, rows[1][2] none
const CODE = /```[\s\S]*?(?:```|$)|`[^`\n]*`/g; // a fence that is open yet reaches to the end
const LEAST_SHARE = 0.45;
const COMMON = new Set("a an and are as at be been but by can did do does for from had has have he her his how i if in into is it its may more not of on one only or our she so than that the their them then there these they this to was we were what when where which who will with would you your".split(" "));

export const words = (text) =>
  segments(text.toLocaleLowerCase(), "word").filter((part) => part.isWordLike && !COMMON.has(part.segment)).map((part) => part.segment);

export const sentences = (text) => segments(text, "sentence");

// What the model cited itself: each [n] that is no index, as of rows[1], and stands in no code.
export function ownCitations(text, sources) {
  const bare = text.replace(CODE, (code) => "_".repeat(code.length));
  return [...bare.matchAll(OWN)].map((found) => ({ n: Number(found[1]), start: found.index, end: found.index + found[0].length }))
    .filter(({ n }) => n >= 1 && n <= sources.length);
}

// A sentence in pieces: plain strings, and numbers for those of a text's citations that stand in it.
export function ownPieces({ segment, index }, citations) {
  const pieces = [];
  let last = 0;
  for (const { n, start, end } of citations) {
    if (start < index || start >= index + segment.length) continue;
    pieces.push(segment.slice(last, start - index), n);
    last = end - index;
  }
  return [...pieces, segment.slice(last)];
}

// Weighs words by how few passages have them: [n] of the best passage, and the words that it shares; null where none is near.
export function finder(sources) {
  const held = sources.map((source) => new Set(words(source.text)));
  const weight = (word) => Math.log(1 + sources.length / held.filter((own) => own.has(word)).length);
  return (sentence) => {
    const telling = [...new Set(words(sentence))];
    const known = telling.filter((word) => held.some((own) => own.has(word)));
    if (known.length < 2) return null;
    const rarest = Math.log(1 + sources.length);
    const all = telling.reduce((sum, word) => sum + (known.includes(word) ? weight(word) : rarest), 0);
    const scores = held.map((own) => known.filter((word) => own.has(word)).reduce((sum, word) => sum + weight(word), 0) / all);
    const best = scores.indexOf(Math.max(...scores));
    if (scores[best] < LEAST_SHARE) return null;
    return { number: best + 1, shared: known.filter((word) => held[best].has(word)) };
  };
}

// A text with some of its words marked.
export function marked(text, shared, mark) {
  const wanted = new Set(shared);
  return segments(text, "word").map((part) => (wanted.has(part.segment.toLocaleLowerCase()) ? mark(part.segment) : part.segment));
}
