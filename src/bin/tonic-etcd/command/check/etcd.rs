//! What etcd's members say of themselves, and why they do not, to findings.

use std::error::Error;

use tonic_etcd::RegistryError;
use tonic_etcd::inspect::MemberStatus;

use super::finding::Finding;
use super::kind::Kind;

/// What became of the question to one member, under its URL.
pub(super) type Report = (String, Result<MemberStatus, RegistryError>);

/// The findings of the members, and whether any of them can be asked for more.
pub(super) fn findings(reports: &[Report]) -> (Vec<Finding>, bool) {
    let mut names: Vec<(Kind, String)> = Vec::new();
    let mut answers = 0;
    for (url, report) in reports {
        match report {
            Ok(status) => {
                answers += 1;
                names.extend(problems(status).into_iter().map(|(kind, name)| (kind, format!("{url}{name}"))));
            }
            Err(error) => names.push((kind_of(error), format!("{url}: {}", causes(error)))),
        }
    }
    if answers > 0 || names.iter().any(|(kind, _)| *kind == Kind::EtcdNoLeader) {
        // Others answer, be it that they have no leader.
        for (kind, _) in names.iter_mut().filter(|(kind, _)| *kind == Kind::EtcdUnreachable) {
            *kind = Kind::EtcdMemberDown;
        }
    }
    if let Some(clusters) = clusters(reports) {
        names.push((Kind::EtcdSplit, clusters));
    }
    names.sort_by_key(|(kind, _)| *kind);
    let groups = names.chunk_by(|(a, _), (b, _)| a == b);
    let of_group =
        |group: &[(Kind, String)]| Finding::new(group[0].0, None, group.iter().map(|(_, name)| name.clone()).collect());
    (groups.map(of_group).collect(), answers > 0)
}

/// What a member that answers says is wrong.
fn problems(status: &MemberStatus) -> Vec<(Kind, String)> {
    let kind = |problem: &str| match problem {
        problem if problem.contains("NOSPACE") => Kind::EtcdNoSpace,
        problem if problem.contains("no leader") => Kind::EtcdNoLeader,
        _ => Kind::EtcdProblem,
    };
    let mut problems: Vec<_> =
        status.problems().iter().map(|problem| (kind(problem), format!(": {}", problem.trim()))).collect();
    if status.leader().is_none() && !problems.iter().any(|(kind, _)| *kind == Kind::EtcdNoLeader) {
        problems.push((Kind::EtcdNoLeader, String::new()));
    }
    if status.is_learner() {
        problems.push((Kind::EtcdLearner, String::new()));
    }
    problems
}

/// The clusters of the members that answer, if they are several.
fn clusters(reports: &[Report]) -> Option<String> {
    let ids: Vec<(&str, u64)> =
        reports.iter().filter_map(|(url, report)| Some((url.as_str(), report.as_ref().ok()?.cluster_id()))).collect();
    let are_several = ids.windows(2).any(|pair| pair[0].1 != pair[1].1);
    are_several.then(|| ids.iter().map(|(url, id)| format!("{url} is of {id:x}")).collect::<Vec<_>>().join(", "))
}

/// Why nothing could be read, as a finding.
pub(super) fn failure(error: &RegistryError) -> Finding {
    let causes = causes(error);
    let kind = match kind_of(error) {
        // The login worked, or the members' reports had named it.
        Kind::EtcdLogin if !wants_login(&causes) => Kind::EtcdPermission,
        kind => kind,
    };
    Finding::new(kind, None, vec![causes])
}

fn kind_of(error: &RegistryError) -> Kind {
    let causes = causes(error);
    match error {
        RegistryError::Tls { .. } => Kind::EtcdTls,
        RegistryError::Denied { .. } => Kind::EtcdLogin,
        RegistryError::SplitCluster { .. } => Kind::EtcdSplit,
        RegistryError::Unavailable { .. } if causes.contains("no leader") => Kind::EtcdNoLeader,
        RegistryError::Unavailable { .. } if causes.contains("TLS") || causes.contains("tls") => Kind::EtcdTls,
        RegistryError::Unavailable { .. } => Kind::EtcdUnreachable,
        _ => Kind::EtcdRefused,
    }
}

fn wants_login(causes: &str) -> bool {
    causes.contains("log in") || causes.contains("login") || causes.contains("user name is empty")
}

/// The causes in one line: what was found says the rest.
pub(super) fn causes(error: &RegistryError) -> String {
    let mut causes = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        causes.push(error.to_string());
        cause = error.source();
    }
    if causes.is_empty() { error.to_string() } else { causes.join(": ") }
}
