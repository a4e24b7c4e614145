//! Patterns.
#![no_std]
