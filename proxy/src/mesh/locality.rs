//! Where a workload or endpoint is: `region/zone/subzone`.

use std::{collections::BTreeMap, sync::Arc};

use super::table::Endpoint;
use crate::api::istio::WorkloadEntry;

/// Istio's label for a locality; `.` stands for `/`, which labels may not bear.
const LOCALITY: &str = "istio-locality";
/// The labels that Kubernetes and Istio give region, zone and subzone.
const TOPOLOGY: [&str; 3] =
    ["topology.kubernetes.io/region", "topology.kubernetes.io/zone", "topology.istio.io/subzone"];

/// The locality that a pod's labels tell: `istio-locality` before the topology labels. Empty where nothing does.
pub fn of_pod(labels: &BTreeMap<String, String>) -> Arc<str> {
    if let Some(text) = labels.get(LOCALITY).filter(|text| !text.is_empty()) {
        return Arc::from(if text.contains('/') { text.clone() } else { text.replace('.', "/") });
    }
    let parts = TOPOLOGY.map(|label| labels.get(label).map_or("", String::as_str));
    // A zone without its region says nothing, as in Istio.
    let known = parts.iter().take_while(|part| !part.is_empty()).copied().collect::<Vec<_>>();
    if known.is_empty() { Endpoint::no_locality() } else { Arc::from(known.join("/")) }
}

pub fn of_entry(entry: &WorkloadEntry) -> Arc<str> {
    match entry.locality.as_str() {
        "" => of_pod(&entry.labels),
        locality => Arc::from(locality),
    }
}

/// `labels` with the topology labels that `locality` implies, for `failoverPriority`, which compares such labels of
/// client and endpoint (Istio `label.AugmentLabels`).
#[must_use]
pub fn augmented(labels: &Arc<BTreeMap<String, String>>, locality: &str) -> Arc<BTreeMap<String, String>> {
    let parts = TOPOLOGY.iter().zip(locality.split('/')).filter(|(_, part)| !part.is_empty());
    let missing: Vec<_> = parts.filter(|(label, _)| !labels.contains_key(**label)).collect();
    if missing.is_empty() {
        return labels.clone();
    }
    let mut all = (**labels).clone();
    all.extend(missing.into_iter().map(|(label, part)| ((*label).to_owned(), part.to_owned())));
    Arc::new(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn where_a_pod_is() {
        let [region, zone, subzone] = TOPOLOGY;
        for (list, want) in [
            (&[][..], ""),
            (&[(LOCALITY, "eu.west.a")], "eu/west/a"),
            (&[(LOCALITY, "eu/west.1"), (region, "us")], "eu/west.1"),
            (&[(region, "eu"), (zone, "eu-1"), (subzone, "rack")], "eu/eu-1/rack"),
            (&[(region, "eu")], "eu"),
            (&[(zone, "eu-1"), (subzone, "rack")], ""),
        ] {
            assert_eq!(&*of_pod(&labels(list)), want, "{list:?}");
        }
        let entry = WorkloadEntry { locality: "a/b".to_owned(), ..WorkloadEntry::default() };
        assert_eq!(&*of_entry(&entry), "a/b");
    }

    #[test]
    fn labels_that_a_locality_implies() {
        let own = Arc::new(labels(&[("app", "x"), (TOPOLOGY[0], "own")]));
        let all = augmented(&own, "eu/eu-1");
        assert_eq!(*all, labels(&[("app", "x"), (TOPOLOGY[0], "own"), (TOPOLOGY[1], "eu-1")]));
        assert!(Arc::ptr_eq(&augmented(&own, ""), &own));
    }
}
