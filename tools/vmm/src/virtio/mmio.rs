//! The virtio-mmio transport, version 2: the registers of a device, and the order in which a driver may go through them.
//!
//! A driver adds bits to the status, one after another: it acknowledges the device, accepts features, sets the queues up, and
//! starts it. What comes out of turn is ignored: features after FEATURES_OK, queues before it or after DRIVER_OK. Only
//! writing zero takes bits away, and resets everything. FEATURES_OK stays clear if the features can't be had.

use super::QUEUE_SIZE;
use super::worker::{Line, Shared};
use crate::bus::Registers;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Arc, Mutex, PoisonError};
use virtio_bindings::virtio_config::{
    VIRTIO_CONFIG_S_ACKNOWLEDGE, VIRTIO_CONFIG_S_DRIVER, VIRTIO_CONFIG_S_DRIVER_OK,
    VIRTIO_CONFIG_S_FAILED, VIRTIO_CONFIG_S_FEATURES_OK, VIRTIO_F_VERSION_1,
};
use virtio_bindings::virtio_mmio::*;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC};
use virtio_queue::QueueState;

/// "virt".
const MAGIC: u32 = 0x7472_6976;
const VERSION: u32 = 2;
/// Of nobody's register.
const VENDOR: u32 = 0;
/// The bits that a driver adds, in this order.
const STEPS: [u32; 4] = [
    VIRTIO_CONFIG_S_ACKNOWLEDGE,
    VIRTIO_CONFIG_S_DRIVER,
    VIRTIO_CONFIG_S_FEATURES_OK,
    VIRTIO_CONFIG_S_DRIVER_OK,
];
/// Feature bits that all devices have.
const COMMON: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// Where in the registers the driver notifies: KVM turns a store of the queue's index there into an eventfd's event.
pub const NOTIFY: u64 = VIRTIO_MMIO_QUEUE_NOTIFY as u64;

/// What the driver has said so far.
#[derive(Clone, Debug)]
struct State {
    device_features: u32,
    driver_features: u32,
    accepted: u64,
    queue: u32,
    queues: Vec<QueueState>,
}

impl State {
    fn new(queues: usize) -> Self {
        let fresh = QueueState { max_size: QUEUE_SIZE, size: QUEUE_SIZE, ..QueueState::default() };
        Self {
            device_features: 0,
            driver_features: 0,
            accepted: 0,
            queue: 0,
            queues: vec![fresh; queues],
        }
    }

    fn selected(&mut self) -> Option<&mut QueueState> {
        self.queues.get_mut(self.queue as usize)
    }
}

/// The registers of one device.
pub struct Transport {
    id: u32,
    features: u64,
    config: Vec<u8>,
    line: Arc<Line>,
    state: Mutex<State>,
    worker: Shared,
}

impl Transport {
    /// Those of this device.
    pub fn new(worker: Shared) -> Self {
        let locked = worker.lock();
        let device = locked.device();
        let features = device.features() | locked.features() | COMMON;
        let (id, config) = (device.id(), device.config());
        let state = Mutex::new(State::new(device.queues()));
        let line = locked.line().clone();
        drop(locked);
        Self { id, features, config, line, state, worker }
    }

    /// The device behind them.
    pub fn worker(&self) -> &Shared {
        &self.worker
    }

    fn load(&self, register: u32) -> u32 {
        // Without a lock: an interrupt's handler doesn't wait for anybody.
        match register {
            VIRTIO_MMIO_INTERRUPT_STATUS => return self.line.pending.load(SeqCst),
            VIRTIO_MMIO_STATUS => return self.line.status.load(SeqCst),
            _ => {}
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match register {
            VIRTIO_MMIO_MAGIC_VALUE => MAGIC,
            VIRTIO_MMIO_VERSION => VERSION,
            VIRTIO_MMIO_DEVICE_ID => self.id,
            VIRTIO_MMIO_VENDOR_ID => VENDOR,
            VIRTIO_MMIO_DEVICE_FEATURES => half(self.features, state.device_features),
            VIRTIO_MMIO_QUEUE_NUM_MAX => state.selected().map_or(0, |queue| queue.max_size.into()),
            VIRTIO_MMIO_QUEUE_READY => state.selected().map_or(0, |queue| queue.ready.into()),
            // There is no shared memory: all of its length is ones.
            VIRTIO_MMIO_SHM_LEN_LOW | VIRTIO_MMIO_SHM_LEN_HIGH => u32::MAX,
            _ => 0,
        }
    }

    fn store(&self, register: u32, value: u32) {
        if register == VIRTIO_MMIO_INTERRUPT_ACK {
            self.line.pending.fetch_and(!value, SeqCst);
            return;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let state = &mut *state;
        let status = self.line.status.load(SeqCst);
        let has = |bit| status & bit != 0;
        match register {
            VIRTIO_MMIO_DEVICE_FEATURES_SEL => state.device_features = value,
            VIRTIO_MMIO_DRIVER_FEATURES_SEL => state.driver_features = value,
            VIRTIO_MMIO_DRIVER_FEATURES => {
                if has(VIRTIO_CONFIG_S_DRIVER) && !has(VIRTIO_CONFIG_S_FEATURES_OK) {
                    set_half(&mut state.accepted, state.driver_features, value);
                }
            }
            VIRTIO_MMIO_QUEUE_SEL => state.queue = value,
            // Where KVM has no eventfd for it, which is never so for a queue that there is.
            VIRTIO_MMIO_QUEUE_NOTIFY => {}
            VIRTIO_MMIO_STATUS => self.set_status(state, status, value),
            _ => {
                if has(VIRTIO_CONFIG_S_FEATURES_OK)
                    && !has(VIRTIO_CONFIG_S_DRIVER_OK)
                    && let Some(queue) = state.selected()
                {
                    set_up(queue, register, value);
                }
            }
        }
    }

    fn set_status(&self, state: &mut State, status: u32, value: u32) {
        if value == 0 {
            *state = State::new(state.queues.len());
            self.worker.lock().reset();
            return;
        }
        self.line.status.fetch_or(value & VIRTIO_CONFIG_S_FAILED, SeqCst);
        for step in STEPS.into_iter().filter(|step| status & step == 0) {
            let refused = step == VIRTIO_CONFIG_S_FEATURES_OK && !self.accepts(state.accepted);
            if value & step == 0 || refused {
                return;
            }
            self.line.status.fetch_or(step, SeqCst);
            if step == VIRTIO_CONFIG_S_DRIVER_OK {
                let event_idx = state.accepted & 1 << VIRTIO_RING_F_EVENT_IDX != 0;
                for queue in &mut state.queues {
                    queue.event_idx_enabled = event_idx;
                }
                self.worker.lock().start(state.accepted, &state.queues);
            }
        }
    }

    fn accepts(&self, features: u64) -> bool {
        features & !self.features == 0 && features & 1 << VIRTIO_F_VERSION_1 != 0
    }
}

impl Registers for Transport {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        let config = u64::from(VIRTIO_MMIO_CONFIG);
        if let Some(at) = offset.checked_sub(config) {
            let rest = usize::try_from(at).ok().and_then(|at| self.config.get(at..));
            for (to, from) in data.iter_mut().zip(rest.unwrap_or_default()) {
                *to = *from;
            }
        } else if let (Ok(register), Ok(data)) =
            (u32::try_from(offset), <&mut [u8; 4]>::try_from(data))
        {
            *data = self.load(register).to_le_bytes();
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        // The configuration can't be written.
        if let (Ok(register), Ok(data)) = (u32::try_from(offset), <[u8; 4]>::try_from(data)) {
            self.store(register, u32::from_le_bytes(data));
        }
    }
}

/// Sets up a queue that isn't live.
fn set_up(queue: &mut QueueState, register: u32, value: u32) {
    match register {
        // A size that no queue can have makes one that can't be started.
        VIRTIO_MMIO_QUEUE_NUM => queue.size = u16::try_from(value).unwrap_or(0),
        VIRTIO_MMIO_QUEUE_READY => queue.ready = value & 1 != 0,
        VIRTIO_MMIO_QUEUE_DESC_LOW => set_half(&mut queue.desc_table, 0, value),
        VIRTIO_MMIO_QUEUE_DESC_HIGH => set_half(&mut queue.desc_table, 1, value),
        VIRTIO_MMIO_QUEUE_AVAIL_LOW => set_half(&mut queue.avail_ring, 0, value),
        VIRTIO_MMIO_QUEUE_AVAIL_HIGH => set_half(&mut queue.avail_ring, 1, value),
        VIRTIO_MMIO_QUEUE_USED_LOW => set_half(&mut queue.used_ring, 0, value),
        VIRTIO_MMIO_QUEUE_USED_HIGH => set_half(&mut queue.used_ring, 1, value),
        _ => {}
    }
}

/// The lower half (0) or the upper one (1). There are no others.
fn half(value: u64, which: u32) -> u32 {
    match which {
        0 => value as u32,
        1 => (value >> 32) as u32,
        _ => 0,
    }
}

fn set_half(value: &mut u64, which: u32, half: u32) {
    match which {
        0 => *value = *value & !u64::from(u32::MAX) | u64::from(half),
        1 => *value = *value & u64::from(u32::MAX) | u64::from(half) << 32,
        _ => {}
    }
}

#[cfg(test)]
mod tests;
