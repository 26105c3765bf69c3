//! Work on many threads whose results are taken in the order in which the jobs were given.

use std::ops::ControlFlow;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Mutex, PoisonError};

use imgcore::{Error, Result};

/// Hands a job over; `Break` when nobody wants more.
pub(super) type Give<'a, J> = &'a mut dyn FnMut(J) -> ControlFlow<()>;

/// Runs `work` over the jobs that `feed` gives, on `threads` threads, and `take` over the results in the order of the
/// jobs. The first error in that order ends all. At most `2 * threads + 2` results are in memory.
pub(super) fn ordered<J: Send, R: Send>(
    threads: usize,
    feed: impl FnOnce(Give<'_, J>) -> Result<()> + Send,
    work: impl Fn(J) -> Result<R> + Sync,
    mut take: impl FnMut(R) -> Result<()>,
) -> Result<()> {
    let threads = threads.max(1);
    let (places, queue) = sync_channel(threads);
    let (jobs, job_queue) = sync_channel::<(J, SyncSender<Result<R>>)>(threads);
    let job_queue = Mutex::new(job_queue);
    std::thread::scope(|scope| {
        let (job_queue, work) = (&job_queue, &work);
        for _ in 0..threads {
            // Ends when the feeding thread has dropped its end.
            scope.spawn(move || {
                loop {
                    let job = job_queue.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok((job, reply)) = job else { return };
                    let _ = reply.send(work(job));
                }
            });
        }
        scope.spawn(move || {
            let fed = feed(&mut |job| {
                let (reply, result) = sync_channel(1);
                match places.send(result).is_ok() && jobs.send((job, reply)).is_ok() {
                    true => ControlFlow::Continue(()),
                    false => ControlFlow::Break(()),
                }
            });
            if let Err(e) = fed {
                let (reply, result) = sync_channel(1);
                let _ = reply.send(Err(e));
                let _ = places.send(result);
            }
        });
        // Dropped at an error, which ends the feeding thread.
        for result in queue {
            take(result.recv().map_err(|_| Error::Invalid("a worker stopped".into()))??)?;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(threads: usize, count: u64, bad: Option<u64>) -> (Vec<u64>, Result<()>) {
        let mut taken = Vec::new();
        let feed = |give: Give<'_, u64>| {
            for n in 0..count {
                if give(n).is_break() {
                    break;
                }
            }
            Ok(())
        };
        let work = |n: u64| {
            std::thread::sleep(std::time::Duration::from_micros(n * 7919 % 300));
            if Some(n) == bad { Err(Error::Invalid(format!("job {n}"))) } else { Ok(n) }
        };
        let result = ordered(threads, feed, work, |n| {
            taken.push(n);
            Ok(())
        });
        (taken, result)
    }

    #[test]
    fn results_come_in_the_order_of_the_jobs() {
        for threads in [1, 2, 7] {
            let (taken, result) = run(threads, 500, None);
            result.unwrap();
            assert!(taken.iter().copied().eq(0..500));
        }
    }

    #[test]
    fn an_error_of_any_part_ends_all() {
        let (taken, result) = run(4, 1_000_000, Some(30));
        assert_eq!((taken.len(), result.unwrap_err().to_string()), (30, "job 30".into()));
        let failed = ordered(2, |_| Err(Error::Cancelled), |n: u64| Ok(n), |_| Ok(()));
        assert!(matches!(failed, Err(Error::Cancelled)));
        let endless = |give: Give<'_, u64>| {
            while give(1).is_continue() {}
            Ok(())
        };
        assert!(ordered(3, endless, Ok, |_| Err(Error::Cancelled)).is_err());
    }
}
