//! The running parts: each has a name, `/readyz` says how it stands, and one that ends by
//! itself ends the server, so that the service manager starts it anew.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::bail;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::admin::{Part, Readiness};

/// How the parts stand; clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Parts {
    standing: Arc<Mutex<Vec<Part>>>,
}

/// Parts under way.
#[derive(Debug)]
pub(super) struct Running {
    parts: Parts,
    tasks: JoinSet<&'static str>,
    cancel: CancellationToken,
}

impl Parts {
    /// What `/readyz` asks.
    pub(super) fn readiness(&self) -> Readiness {
        let parts = self.clone();
        Arc::new(move || parts.lock().clone())
    }

    /// Begins; `cancel` is what all of them stop at.
    pub(super) fn start(self, cancel: CancellationToken) -> Running {
        Running {
            parts: self,
            tasks: JoinSet::new(),
            cancel,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Part>> {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Running {
    /// Starts a part. `detail` is where it listens.
    pub(super) fn add<F>(&mut self, name: &'static str, detail: &str, part: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.parts.lock().push(Part {
            name: name.to_owned(),
            ready: true,
            detail: detail.to_owned(),
        });
        self.tasks.spawn(async move {
            part.await;
            name
        });
    }

    /// Until all parts have ended.
    ///
    /// # Errors
    /// When one ended, or panicked, without having been asked to.
    pub(super) async fn wait(mut self) -> anyhow::Result<()> {
        let mut failed = None;
        while let Some(ended) = self.tasks.join_next().await {
            let name = match &ended {
                Ok(name) => *name,
                Err(e) => {
                    tracing::error!(error = %e, "a part failed");
                    "a part"
                }
            };
            if let Some(part) = self.parts.lock().iter_mut().find(|part| part.name == name) {
                part.ready = false;
                part.detail = "has ended".to_owned();
            }
            if !self.cancel.is_cancelled() {
                failed.get_or_insert(name);
                self.cancel.cancel();
            }
        }
        match failed {
            Some(name) => bail!("{name} ended by itself, so the server stops"),
            None => Ok(()),
        }
    }
}
