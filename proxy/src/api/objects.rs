//! The objects that egret reads, by kind. The spec types grow with what is supported.

use std::{collections::BTreeMap, sync::Arc};

use super::meta::{Diagnostic, ObjectId, ObjectMeta, Origin, Severity};

/// One object of one kind.
#[derive(Clone, Debug)]
pub struct Object<S> {
    pub id: ObjectId,
    pub meta: ObjectMeta,
    pub spec: S,
    pub origin: Origin,
}

impl<S> Object<S> {
    /// A finding about `field` of this object, with its line and column.
    pub fn diagnostic(&self, severity: Severity, field: &str, message: impl Into<String>) -> Diagnostic {
        let (line, column) = self.origin.locate(field);
        Diagnostic {
            severity,
            object: Some(self.id.clone()),
            file: self.origin.file.clone(),
            line,
            column,
            field: field.to_owned(),
            message: message.into(),
        }
    }
}

/// Every object in force, by kind, each sorted by namespace and name. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Objects {
    pub pods: Kind<super::core::Pod>,
    pub services: Kind<super::core::Service>,
    pub namespaces: Kind<super::core::Namespace>,
    pub secrets: Kind<super::core::Secret>,
    pub service_entries: Kind<super::istio::ServiceEntry>,
    pub destination_rules: Kind<super::istio::DestinationRule>,
    /// ConfigMap `istio` (key `mesh`) or IstioOperator `spec.meshConfig`; the last one read counts.
    pub mesh_configs: Kind<super::istio::MeshConfig>,
}

pub type Kind<S> = BTreeMap<(String, String), Arc<Object<S>>>;
