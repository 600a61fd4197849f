"""Pure logic: types, codecs, arithmetic, policies. No I/O, clock, randomness, trio or lmdb."""
