//! Where the randomness of a test comes from: one seed, printed, so that a run can be repeated.

/// A generator with the test's own seed, or with the one in `ROOMCAST_SEED`. What the test draws from it is the same in
/// each run; what the machine does in between is not.
pub fn random(seed: u64) -> fastrand::Rng {
    let seed = number_from("ROOMCAST_SEED").unwrap_or(seed);
    println!("seed {seed}");
    fastrand::Rng::with_seed(seed)
}

/// A number that a variable gives to the tests.
#[allow(clippy::disallowed_methods, reason = "a variable of the tests, which no gateway reads")]
pub fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is no number: {text:?}")))
}
