//! The randomness of a test comes from one seed. It is printed, so that a run can be repeated.

/// A generator with the test's own seed, or with the one in `ROOMCAST_SEED`. The test draws the same numbers in
/// each run, but the machine's timing differs.
pub fn random(seed: u64) -> fastrand::Rng {
    let seed = number_from("ROOMCAST_SEED").unwrap_or(seed);
    println!("seed {seed}");
    fastrand::Rng::with_seed(seed)
}

/// A number from an environment variable of the tests.
#[allow(clippy::disallowed_methods, reason = "the tests read the variable, not the gateway")]
pub fn number_from(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is not a number: {text:?}")))
}
