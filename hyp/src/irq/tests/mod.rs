//! An ITS and redistributors above a simulated GIC that goes wherever it is sent.

#![forbid(unsafe_code)]

mod its;
mod its_lost;
mod redistributor;
mod sim;
mod storm;
