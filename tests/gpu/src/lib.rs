//! What must hold of GPU memory, whatever it is made of.
//!
//! [`suite`] are cases that run on any driver: ordinary tests run them on the stand-in,
//! the program `tpad-gpu` runs the very same on a GPU. [`parts`] are what the program
//! does besides: rates, and what takes minutes. What ran on the stand-in says so, and is
//! never a result about a GPU.

pub mod child;
pub mod log;
pub mod parts;
pub mod stage;
pub mod suite;
