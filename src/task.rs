//! One of several processes that share an operation: how an engine that runs many copies of one command tells them apart.
//!
//! Kubernetes' Indexed Jobs and Cloud Run's jobs start a command so many times and give each copy its number. That is all that
//! they give, and all that is needed: what the copies have to tell each other goes through the bucket.

use std::fmt;

pub use crate::records::shares::{SharedWork, SharesError};

/// A task, by its number among those that share an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Task {
    index: u32,
    count: u32,
}

/// Numbers that are no task's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no task {index} of {count}: tasks are numbered from 0, and the last is {}", .count.saturating_sub(1))]
pub struct NoSuchTask {
    index: u32,
    count: u32,
}

impl Task {
    /// The task with this number, counted from 0, of so many.
    ///
    /// # Errors
    /// When the number is not below the count.
    pub fn new(index: u32, count: u32) -> Result<Self, NoSuchTask> {
        match index < count {
            true => Ok(Self { index, count }),
            false => Err(NoSuchTask { index, count }),
        }
    }

    /// Its number, counted from 0.
    pub fn index(self) -> u32 {
        self.index
    }

    /// How many there are.
    pub fn count(self) -> u32 {
        self.count
    }

    /// How far a part is from this task's own share when `of` parts are dealt out in as many shares as there are tasks, each of
    /// neighbours: 0 in its own share, 1 in that of the next task, the first after the last.
    pub(crate) fn distance(self, part: usize, of: usize) -> usize {
        let (tasks, own) = (self.count as usize, self.index as usize);
        (share_of(part, of, tasks) + tasks - own) % tasks
    }
}

/// In which of so many shares a part is when `of` parts are dealt out, neighbours to the same share.
fn share_of(part: usize, of: usize, shares: usize) -> usize {
    part * shares / of.max(1)
}

/// One of the parts that work is cut into, by its number, counted from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Part {
    pub(crate) number: u32,
    pub(crate) of: u32,
}

impl Part {
    /// What belongs to it of something that is cut more finely.
    pub(crate) fn pick<T>(self, pieces: Vec<T>) -> Vec<T> {
        let of = pieces.len();
        let pieces = pieces.into_iter().enumerate();
        let own = pieces.filter(|(piece, _)| share_of(*piece, of, self.of as usize) == self.number as usize);
        own.map(|(_, piece)| piece).collect()
    }
}

/// A task's share, where work is cut into as many parts as there are tasks.
impl From<Task> for Part {
    fn from(task: Task) -> Self {
        Self {
            number: task.index,
            of: task.count,
        }
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "part {} of {}", self.number, self.of)
    }
}

impl fmt::Display for Task {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "task {} of {}", self.index, self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_in_one_tasks_share() {
        for (tasks, parts) in [(1, 1), (3, 10), (8, 64), (8, 3), (5, 5)] {
            let mut shares = vec![0; tasks as usize];
            for part in 0..parts {
                let owners: Vec<u32> = (0..tasks)
                    .filter(|&index| Task::new(index, tasks).unwrap().distance(part, parts) == 0)
                    .collect();
                assert_eq!(owners.len(), 1, "part {part} of {parts} for {tasks} tasks");
                shares[owners[0] as usize] += 1;
            }
            let (least, most) = (shares.iter().min().unwrap(), shares.iter().max().unwrap());
            assert!(most - least <= 1, "{shares:?}");
            let picked = |index| Part::from(Task::new(index, tasks).unwrap()).pick((0..parts).collect());
            let all: Vec<usize> = (0..tasks).flat_map(picked).collect();
            assert_eq!(all, (0..parts).collect::<Vec<_>>());
        }
        assert!(Task::new(8, 8).is_err() && Task::new(0, 0).is_err());
        let error = Task::new(8, 8).unwrap_err().to_string();
        assert!(
            error.contains("no task 8 of 8") && error.contains("the last is 7"),
            "{error}"
        );
    }
}
