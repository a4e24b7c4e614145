//! `cargo xtask trace`: world switches and FP moves on a time axis, in the JSON of Chrome's trace
//! events, which Perfetto's viewer (ui.perfetto.dev) opens. One instruction is one nanosecond.

use serde_json::{Value, json};

use super::code::{Class, Code, Place, World};

/// Events that are kept: a viewer has to hold them all.
const MOST_EVENTS: usize = 400_000;

/// The tracks, in the order in which they are shown.
const TRACKS: [(u64, &str); 5] =
    [(1, "measurement"), (2, "guest"), (3, "host"), (4, "hyp"), (5, "FP registers")];

/// A stretch that has begun.
struct Open {
    start: u64,
    name: String,
    counts: [u64; 4],
}

/// A stretch of one world.
struct Stretch {
    world: World,
    start: u64,
    /// Who ran before.
    before: Option<World>,
    counts: [u64; 4],
    moved: bool,
}

/// Collects events.
#[derive(Default)]
pub struct Timeline {
    now: u64,
    events: Vec<Value>,
    dropped: u64,
    current: Option<Stretch>,
    moving: Option<(usize, u64)>,
    row: Option<(usize, Open)>,
    /// Where each row's name goes once it is known.
    rows: Vec<(usize, usize)>,
}

impl Timeline {
    fn emit(&mut self, event: Value) -> bool {
        if self.events.len() < MOST_EVENTS {
            self.events.push(event);
            true
        } else {
            self.dropped += 1;
            false
        }
    }

    fn slice(&mut self, track: u64, name: &str, start: u64, args: Value) -> bool {
        // Microseconds, with decimals.
        let (ts, dur) = (start as f64 / 1000.0, (self.now - start) as f64 / 1000.0);
        self.emit(json!({
            "ph": "X", "pid": 1, "tid": track, "name": name, "ts": ts, "dur": dur, "args": args
        }))
    }

    /// A row of the table begins.
    pub fn row(&mut self, number: usize) {
        let open = Open { start: self.now, name: format!("row {number}"), counts: [0; 4] };
        self.row = Some((number, open));
    }

    /// It ends.
    pub fn row_end(&mut self) {
        if let Some((number, open)) = self.row.take()
            && self.slice(1, &open.name, open.start, counts(open.counts))
        {
            self.rows.push((number, self.events.len() - 1));
        }
    }

    /// One instruction.
    pub fn take(&mut self, place: Place, code: &Code) {
        let changed = self.current.as_ref().is_none_or(|current| current.world != place.world);
        if changed {
            let before = self.current.as_ref().map(|current| current.world);
            self.end_moving(code);
            self.end_stretch(place.world);
            self.current = Some(Stretch {
                world: place.world,
                start: self.now,
                before,
                counts: [0; 4],
                moved: false,
            });
        }
        let is_move =
            place.world == World::Hyp && code.name(place.function).starts_with("umbra_fp_");
        if self.moving.is_none_or(|(function, _)| !is_move || function != place.function) {
            self.end_moving(code);
            if is_move {
                self.moving = Some((place.function, self.now));
            }
        }
        let kind = match place.class {
            Class::Isb => Some(0),
            Class::Dsb => Some(1),
            Class::Tlbi => Some(2),
            Class::Cache => Some(3),
            Class::Other => None,
        };
        if let Some(current) = &mut self.current {
            current.moved |= is_move;
            if let Some(kind) = kind {
                current.counts[kind] += 1;
            }
        }
        if let (Some(kind), Some((_, row))) = (kind, &mut self.row) {
            row.counts[kind] += 1;
        }
        self.now += 1;
    }

    fn end_moving(&mut self, code: &Code) {
        if let Some((function, start)) = self.moving.take() {
            let name = code.name(function).trim_start_matches("umbra_fp_").replace('_', " ");
            self.slice(5, &name, start, json!({}));
        }
    }

    /// The stretch of one world ends because `next` goes on.
    fn end_stretch(&mut self, next: World) {
        let Some(stretch) = self.current.take() else { return };
        let (track, name) = match stretch.world {
            World::Guest => (2, "guest"),
            World::Host => (3, "host"),
            World::Hyp => (4, name(&stretch, next)),
        };
        self.slice(track, name, stretch.start, counts(stretch.counts));
    }

    /// The whole file. `names` are those of the rows.
    pub fn finish(mut self, names: &[String], code: &Code) -> Value {
        self.end_moving(code);
        self.end_stretch(World::Host);
        for (number, event) in &self.rows {
            if let (Some(name), Some(event)) = (names.get(*number), self.events.get_mut(*event)) {
                event["name"] = json!(name);
            }
        }
        let mut events: Vec<Value> = TRACKS
            .iter()
            .flat_map(|(track, name)| {
                let about = |what: &str, args: Value| {
                    json!({ "ph": "M", "pid": 1, "tid": track, "name": what, "args": args })
                };
                [
                    about("thread_name", json!({ "name": name })),
                    about("thread_sort_index", json!({ "sort_index": track })),
                ]
            })
            .collect();
        events.append(&mut self.events);
        json!({
            "displayTimeUnit": "ns",
            "otherData": {
                "unit": "1 ns is one executed instruction",
                "instructions": self.now,
                "events left out": self.dropped,
            },
            "traceEvents": events,
        })
    }
}

fn counts([isb, dsb, tlbi, cache]: [u64; 4]) -> Value {
    json!({ "ISB": isb, "DSB": dsb, "TLBI": tlbi, "cache": cache })
}

/// What hyp did from one world to the next.
fn name(stretch: &Stretch, next: World) -> &'static str {
    let from_guest = stretch.before == Some(World::Guest);
    match (from_guest, next, stretch.moved) {
        (true, World::Guest, false) => "trap",
        (true, World::Guest, true) => "FP trap of the guest",
        (true, _, false) => "exit",
        (true, _, true) => "exit, FP moved",
        (false, World::Guest, _) => "entry",
        (false, _, false) => "hypercall",
        (false, _, true) => "FP trap of the host, or put",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stretch_is_a_slice_and_rows_get_their_names() {
        let code = Code::default();
        let mut timeline = Timeline::default();
        let place = |world| Place { world, class: Class::Isb, mark: None, function: 0 };
        timeline.row(0);
        for world in [World::Guest, World::Guest, World::Hyp, World::Host] {
            timeline.take(place(world), &code);
        }
        timeline.row_end();
        let trace = timeline.finish(&["exit_to_host".to_owned()], &code);
        let slices: Vec<_> = trace["traceEvents"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|event| event["ph"] == "X")
            .map(|event| (event["name"].as_str().unwrap(), event["dur"].as_f64().unwrap()))
            .collect();
        assert_eq!(
            slices,
            [("guest", 0.002), ("exit", 0.001), ("exit_to_host", 0.004), ("host", 0.001)]
        );
        assert_eq!(trace["otherData"]["instructions"], 4);
    }
}
