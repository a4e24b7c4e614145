//! A CPU's FP state as the log of a test build has it.

#![forbid(unsafe_code)]

use super::engine::{CpuFp, HostImage};
use super::vcpu::Live;
use umbra_shared::record::FpState;

impl<I> CpuFp<I> {
    /// For the log.
    pub fn record(&self) -> FpState {
        let (image, vq) = match self.host_image() {
            HostImage::None => (0, 0),
            HostImage::Fpsimd => (1, 0),
            HostImage::Full(vq) => (2, vq.quadwords() as u8),
            HostImage::Streaming(vq) => (3, vq.quadwords() as u8),
        };
        let owner = |live| match live {
            Live::Host => 0,
            Live::Guest => 1,
            Live::Nobody => 2,
        };
        let host_za = self.host_za().map_or(0, |vq| vq.quadwords() as u8);
        FpState { live: owner(self.live()), image, vq, za: owner(self.za()), host_za }
    }
}
