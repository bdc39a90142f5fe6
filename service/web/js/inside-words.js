/* How the inside view writes words and numbers. */

import { percent } from "./scale.js";

export const nameOf = (word) => (word === "<EOS>" ? "¶" : word);
export const percentOf = (probability) => percent(Math.log(probability));
