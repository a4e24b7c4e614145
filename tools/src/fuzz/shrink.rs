//! Making a failing program short: whole runs of steps are left out as long as it still fails (delta
//! debugging, Zeller and Hildebrandt 2002), several shorter programs being tried in one boot.

use std::time::Instant;

use anyhow::Result;
use umbra_fuzz::program::{Mode, Step};

use super::batch::{Lab, Runner};
use super::script::{MachineSpec, Program, Script};

/// Programs tried in one boot.
const TRIES: usize = 12;
/// In a storm a program fails now and then: so often each is tried.
const REPEATS: usize = 4;

/// Finds which of several programs fails first, if any does.
pub trait Judge {
    /// The number of the first program that fails.
    fn first_failure(&mut self, programs: &[Vec<Step>]) -> Result<Option<usize>>;
    /// Whether there is no time left.
    fn is_over(&self) -> bool;
}

/// By booting them.
pub struct Booting<'l, R> {
    /// Where.
    pub lab: &'l Lab<R>,
    /// On what.
    pub machine: MachineSpec,
    /// What they are.
    pub mode: Mode,
    /// Their seed, which `junk` steps don't use.
    pub seed: u64,
    /// When to stop.
    pub deadline: Instant,
    /// How the last failure was told.
    pub why: String,
}

impl<R: Runner> Judge for Booting<'_, R> {
    fn first_failure(&mut self, programs: &[Vec<Step>]) -> Result<Option<usize>> {
        let repeats = if self.mode == Mode::Storm { REPEATS } else { 1 };
        let each = programs.iter().flat_map(|steps| std::iter::repeat_n(steps, repeats));
        let programs = each
            .map(|steps| Program { seed: self.seed, mode: self.mode, steps: steps.clone() })
            .collect();
        let script = Script { machine: self.machine.clone(), programs };
        let outcome = self.lab.run(&script, "fuzz-shrink")?;
        let Some((_, why)) = outcome.failure() else { return Ok(None) };
        self.why = why.to_owned();
        Ok(Some((outcome.verdicts.len() - 1) / repeats))
    }

    fn is_over(&self) -> bool {
        Instant::now() > self.deadline
    }
}

/// Shortens `steps`, which fail.
pub fn shrink(mut steps: Vec<Step>, judge: &mut impl Judge) -> Result<Vec<Step>> {
    let mut parts = 2;
    while steps.len() > 1 && !judge.is_over() {
        let size = steps.len().div_ceil(parts);
        // All that is left when one part is left out.
        let shorter: Vec<Vec<Step>> = (0..steps.len().div_ceil(size))
            .map(|n| {
                let (from, to) = (n * size, ((n + 1) * size).min(steps.len()));
                [&steps[..from], &steps[to..]].concat()
            })
            .collect();
        let mut found = None;
        for (n, tries) in shorter.chunks(TRIES).enumerate() {
            if let Some(first) = judge.first_failure(tries)? {
                found = Some(n * TRIES + first);
                break;
            }
            if judge.is_over() {
                break;
            }
        }
        match found {
            Some(n) => {
                steps = shorter[n].clone();
                parts = (parts - 1).max(2);
            }
            None if size == 1 => break,
            None => parts = (2 * parts).min(steps.len()),
        }
    }
    Ok(steps)
}

#[cfg(test)]
mod tests {
    use super::*;
    use umbra_fuzz::program::Event;

    /// Fails if all of these steps are there, in this order.
    struct Needs(Vec<Step>, usize);

    impl Judge for Needs {
        fn first_failure(&mut self, programs: &[Vec<Step>]) -> Result<Option<usize>> {
            self.1 += 1;
            Ok(programs.iter().position(|steps| {
                let mut rest = steps.iter();
                self.0.iter().all(|needed| rest.any(|step| step == needed))
            }))
        }
        fn is_over(&self) -> bool {
            false
        }
    }

    #[test]
    fn what_is_needed_remains_and_nothing_else() {
        let step = |n: u16| Step { cpu: (n % 4) as u8, event: Event::Fill(n) };
        let steps: Vec<_> = (0..300).map(step).collect();
        for needed in [vec![7], vec![0, 299], vec![3, 4, 150, 151, 290]] {
            let needed: Vec<_> = needed.into_iter().map(step).collect();
            let mut judge = Needs(needed.clone(), 0);
            assert_eq!(shrink(steps.clone(), &mut judge).unwrap(), needed);
            assert!(judge.1 < 200, "{} boots", judge.1);
        }
    }
}
