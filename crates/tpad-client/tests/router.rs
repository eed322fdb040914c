//! The reference router: what it must agree with and what must always hold.

#[path = "router/dice.rs"]
mod dice;
#[path = "router/growth.rs"]
mod growth;
#[path = "router/properties.rs"]
mod properties;
#[path = "router/refusals.rs"]
mod refusals;
#[path = "router/vectors.rs"]
mod vectors;
