//! An ITS and redistributors above a simulated GIC that goes wherever it is sent.

mod its;
mod redistributor;
mod sim;
mod storm;
