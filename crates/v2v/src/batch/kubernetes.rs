//! `--runner kubernetes`: the guests of a plan as one Indexed Job. What is written is JSON, which `kubectl` takes as it takes YAML.

use std::path::Path;

use serde_json::{Value, json};

use super::files;
use super::limits::Need;
use super::phase::Phase;
use super::plan::{Guest, Plan};
use super::slurm::{Tasks, argument, quoted};
use super::state::State;
use crate::{Error, Result};

/// Pods at a time, where the plan does not say.
const JOBS: usize = 8;
/// A guest whose node is lost is begun so many times again.
const RETRIES: u32 = 3;

/// The manifest for these guests, and the list that its indexes count.
pub fn manifest(plan: &Plan, state: &State, guests: &[&Guest], phase: Option<Phase>) -> Result<Value> {
    let missing =
        |key: &str, what: &str| Error::Invalid(format!("{}: write [kubernetes] {key} = \"…\" in the plan: {what}", plan.file.display()));
    let settings = &plan.kubernetes;
    let image = settings.image.as_ref().ok_or_else(|| missing("image", "the container image that has v2v"))?;
    let claim = settings.claim.as_ref().ok_or_else(|| missing("claim", "the volume claim with the plan, the sources and the results"))?;
    let file = std::path::absolute(&plan.file).map_err(|e| files::io_error(&plan.file, "find", e))?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    let tasks = Tasks::write(state, guests)?;
    // The pods see the plan's folder under another path, perhaps.
    let mount = settings.mount.as_ref().map_or(folder, Path::new);
    let inside = |path: &Path| path.strip_prefix(folder).map_or_else(|_| path.to_owned(), |rest| mount.join(rest));
    let command = format!(
        "exec v2v batch run-one {} --tasks {} --task \"$JOB_COMPLETION_INDEX\"{}",
        quoted(&inside(&file)),
        quoted(&inside(&tasks.file)),
        argument(phase)
    );
    let memory = guests.iter().map(|g| Need::of(plan, g, g.facts, phase).memory).max().unwrap_or(0).div_ceil(1 << 20);
    // Each phase is a job of its own.
    let name = phase.map_or_else(|| job_name(&file), |phase| format!("{}-{}", job_name(&file), phase.name()));
    let mut metadata = json!({ "name": name, "labels": { "app.kubernetes.io/name": "v2v-batch" } });
    if let Some(namespace) = &settings.namespace {
        metadata["namespace"] = json!(namespace);
    }
    Ok(json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "completionMode": "Indexed",
            "completions": tasks.names.len(),
            "parallelism": plan.jobs.unwrap_or(JOBS).min(tasks.names.len()),
            // Each index has tries of its own: one guest that fails does not stop the others.
            "backoffLimitPerIndex": RETRIES,
            "maxFailedIndexes": tasks.names.len(),
            // A conversion that fails with a word fails the next time, too.
            "podFailurePolicy": { "rules": [{ "action": "FailIndex", "onExitCodes": { "operator": "In", "values": [1, 2] } }] },
            "template": {
                "spec": {
                    "restartPolicy": "Never",
                    // The conversion is told to end, and cleans up.
                    "terminationGracePeriodSeconds": 60,
                    "containers": [{
                        "name": "v2v",
                        "image": image,
                        "command": ["/bin/sh", "-c", command],
                        "resources": { "requests": { "cpu": "2", "memory": format!("{memory}Mi") }, "limits": { "memory": format!("{}Mi", memory + memory / 4) } },
                        "volumeMounts": [{ "name": "guests", "mountPath": mount }],
                    }],
                    "volumes": [{ "name": "guests", "persistentVolumeClaim": { "claimName": claim } }],
                },
            },
        },
    }))
}

/// A name by the rules of DNS labels, as Kubernetes wants it.
fn job_name(plan: &Path) -> String {
    let stem = plan.file_stem().map(|s| s.to_string_lossy().to_lowercase()).unwrap_or_default();
    let letters: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(40).collect();
    format!("v2v-{}", letters.trim_matches('-')).trim_end_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::plan::Language;

    #[test]
    fn an_indexed_job_has_an_index_for_each_guest() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("Plan of März.toml");
        let text = "[kubernetes]\nimage = \"registry.example/v2v:1\"\nclaim = \"guests\"\nmount = \"/data\"\n[defaults]\nout = \"out\"\n\
             [[guest]]\nname = \"web\"\nsource = \"web.cfg\"\ndata = \"1G\"\n[[guest]]\nname = \"db\"\nsource = \"db.cfg\"\ndata = \"1G\"\n";
        let parse = |text: &str| Plan::parse(&file, text, &Language { options: &["out".into()], check: &|_| Ok(()) }).unwrap();
        let (plan, state) = (parse(text), State::of(&file));
        std::fs::create_dir(state.dir()).unwrap();
        let guests: Vec<_> = plan.enabled().collect();
        let manifest = manifest(&plan, &state, &guests, Some(Phase::Copy)).unwrap();
        assert_eq!(manifest["metadata"]["name"], "v2v-plan-of-m-rz-copy");
        assert_eq!((&manifest["spec"]["completions"], &manifest["spec"]["parallelism"]), (&json!(2), &json!(2)));
        let command = manifest["spec"]["template"]["spec"]["containers"][0]["command"][2].as_str().unwrap();
        assert!(
            command.starts_with("exec v2v batch run-one '/data/Plan of März.toml' --tasks '/data/Plan of März.state/.tasks-"),
            "{command}"
        );
        assert!(command.ends_with(" --phase copy"), "{command}");
        let list = std::fs::read_dir(state.dir()).unwrap().next().unwrap().unwrap().path();
        assert_eq!(Tasks::read(&list, 1).unwrap(), "db");
        assert!(Tasks::read(&list, 2).unwrap_err().to_string().contains("has no task 2"));

        let error = super::manifest(&parse(&text.replace("claim", "namespace")), &state, &guests, None).unwrap_err().to_string();
        assert!(error.contains("write [kubernetes] claim"), "{error}");
    }
}
