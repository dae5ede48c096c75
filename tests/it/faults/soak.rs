//! Random faults in random order and combination, for as long as one likes: `tests/soak`.
