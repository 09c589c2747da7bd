//! The API server for tests, driven by kube-rs as the agent drives it. What these tests show is what a real server does; they
//! hold against one, too, but for the faults on demand.

use std::{
    collections::BTreeSet,
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use egret_tests::kube::{ApiServer, Client, Fault, crds};
use futures_util::{Stream, TryStreamExt};
use k8s_openapi::api::{
    certificates::v1::CertificateSigningRequest,
    core::v1::{ConfigMap, Pod},
};
use kube::{
    Api, ResourceExt,
    api::{ApiResource, DynamicObject, ListParams, PartialObjectMeta, Patch, PatchParams, PostParams},
    runtime::watcher::{self, Event, watcher},
};
use serde_json::json;

const LIMIT: Duration = Duration::from_secs(20);

fn configmap(name: &str, value: &str) -> serde_json::Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"namespace": "default", "name": name, "labels": {"set": "a"}}, "data": {"key": value}})
}

fn maps(client: &Client) -> Api<ConfigMap> {
    Api::namespaced(client.kube(), "default")
}

/// The next event of a watcher; errors are passed over, as its users do, and counted.
async fn next<K>(
    stream: &mut (impl Stream<Item = watcher::Result<Event<K>>> + Unpin),
    errors: &mut Vec<String>,
) -> Result<Event<K>> {
    let end = Instant::now() + LIMIT;
    while Instant::now() < end {
        match tokio::time::timeout(LIMIT, stream.try_next()).await? {
            Ok(Some(event)) => return Ok(event),
            Ok(None) => bail!("the watcher ended"),
            Err(error) => {
                errors.push(error.to_string());
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    bail!("no event but these errors: {errors:?}")
}

/// The names that a complete initial list has, from `Init` to `InitDone`.
async fn initial<K: ResourceExt>(
    stream: &mut (impl Stream<Item = watcher::Result<Event<K>>> + Unpin),
    errors: &mut Vec<String>,
) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    loop {
        match next(stream, errors).await? {
            Event::Init => names.clear(),
            Event::InitApply(object) => drop(names.insert(object.name_any())),
            Event::InitDone => return Ok(names),
            _ => bail!("an event of a watch within a list"),
        }
    }
}

fn shown<K: ResourceExt>(event: &Event<K>) -> String {
    match event {
        Event::Apply(object) => format!("apply {}", object.name_any()),
        Event::Delete(object) => format!("delete {}", object.name_any()),
        Event::Init => "init".into(),
        Event::InitApply(object) => format!("init {}", object.name_any()),
        Event::InitDone => "done".into(),
    }
}

fn labelled() -> watcher::Config {
    watcher::Config::default().labels("set=a")
}

/// Pages show one state of the store; the watch goes on where the list ended, with its selector.
#[test]
fn a_list_in_pages_and_the_watch_after_it() -> Result<()> {
    let server = ApiServer::start()?;
    for number in 0..20 {
        server.create(&configmap(&format!("map-{number}"), "x"))?;
    }
    server.block_on(async {
        let mut errors = Vec::new();
        let mut stream = pin!(watcher(maps(&server), labelled().page_size(7)));
        assert_eq!(initial(&mut stream, &mut errors).await?.len(), 20);
        let api = maps(&server);
        let set = |value: &str| Patch::Merge(json!({"metadata": {"labels": {"set": value}}}));
        let params = PatchParams::default();
        // Out of the selector, in again, changed, gone.
        api.patch("map-3", &params, &set("b")).await?;
        assert_eq!(shown(&next(&mut stream, &mut errors).await?), "delete map-3");
        api.patch("map-3", &params, &set("a")).await?;
        assert_eq!(shown(&next(&mut stream, &mut errors).await?), "apply map-3");
        api.patch("map-4", &params, &Patch::Merge(json!({"data": {"key": "y"}}))).await?;
        assert_eq!(shown(&next(&mut stream, &mut errors).await?), "apply map-4");
        api.delete("map-4", &Default::default()).await?;
        assert_eq!(shown(&next(&mut stream, &mut errors).await?), "delete map-4");
        assert_eq!(errors, Vec::<String>::new());
        anyhow::Ok(())
    })?;
    let lists = server.requests().into_iter().filter(|seen| seen.verb == "list" && seen.resource == "configmaps");
    let selectors: Vec<_> = lists.map(|seen| seen.label_selector).collect();
    assert_eq!(selectors, ["set=a", "set=a", "set=a"], "20 objects are three pages of 7");
    Ok(())
}

/// A page asked for later shows what was there when the list began.
#[test]
fn pages_are_of_one_state() -> Result<()> {
    let server = ApiServer::start()?;
    for number in 0..4 {
        server.create(&configmap(&format!("map-{number}"), "x"))?;
    }
    server.block_on(async {
        let api = maps(&server);
        let params = ListParams::default().labels("set=a").limit(2);
        let first = api.list(&params).await?;
        let token = first.metadata.continue_.context("there is more")?;
        api.delete("map-3", &Default::default()).await?;
        let rest = api.list(&params.clone().continue_token(&token)).await?;
        let names: Vec<_> = rest.items.iter().map(ResourceExt::name_any).collect();
        assert_eq!(names, ["map-2", "map-3"]);
        assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);
        server.compact();
        let late = api.list(&params.continue_token(&token)).await.unwrap_err();
        assert!(matches!(&late, kube::Error::Api(status) if status.code == 410), "{late}");
        Ok(())
    })
}

/// The list comes as events, and a bookmark says that it is complete.
#[test]
fn a_streaming_list() -> Result<()> {
    let server = ApiServer::start()?;
    for number in 0..5 {
        server.create(&configmap(&format!("map-{number}"), "x"))?;
    }
    server.block_on(async {
        let mut errors = Vec::new();
        let mut stream = pin!(watcher(maps(&server), labelled().streaming_lists()));
        assert_eq!(initial(&mut stream, &mut errors).await?.len(), 5);
        maps(&server).delete("map-1", &Default::default()).await?;
        assert_eq!(shown(&next(&mut stream, &mut errors).await?), "delete map-1");
        assert_eq!(errors, Vec::<String>::new());
        anyhow::Ok(())
    })?;
    assert!(server.requests().iter().all(|seen| seen.verb != "list" || seen.resource != "configmaps"));
    Ok(())
}

/// After a compaction a watch that is resumed is told 410, and the watcher lists anew. So it is where the fault says so.
#[test]
fn a_version_that_is_gone() -> Result<()> {
    let server = ApiServer::start()?;
    server.create(&configmap("one", "x"))?;
    server.block_on(async {
        let mut errors = Vec::new();
        let mut stream = pin!(watcher(maps(&server), labelled()));
        assert_eq!(initial(&mut stream, &mut errors).await?.len(), 1);
        // The watch only begins with the next poll.
        let _ = tokio::time::timeout(Duration::from_millis(200), next(&mut stream, &mut errors)).await;
        server.compact();
        server.drop_watches();
        assert_eq!(initial(&mut stream, &mut errors).await?.len(), 1);
        assert!(errors.iter().any(|error| error.contains("too old resource version")), "{errors:?}");

        errors.clear();
        server.fault(Fault::gone_event().on("configmaps").times(1));
        let _ = tokio::time::timeout(Duration::from_millis(200), next(&mut stream, &mut errors)).await;
        server.drop_watches();
        assert_eq!(initial(&mut stream, &mut errors).await?.len(), 1);
        assert!(!errors.is_empty());
        Ok(())
    })
}

/// A watcher comes through every kind of bad day.
#[test]
fn faults_on_demand() -> Result<()> {
    let server = ApiServer::start()?;
    server.create(&configmap("one", "x"))?;
    let lists = [
        Fault::gone(),
        Fault::too_many_requests(1),
        Fault::status(500),
        Fault::cut(),
        Fault::slow(Duration::from_secs(1)),
    ];
    for fault in lists {
        server.block_on(async {
            let mut errors = Vec::new();
            server.fault(fault.clone().on("configmaps").verbs(&["list"]).times(1));
            let begun = Instant::now();
            let mut stream = pin!(watcher(maps(&server), labelled()));
            let names = initial(&mut stream, &mut errors).await?;
            assert_eq!(names.len(), 1, "{fault:?}");
            let slow = begun.elapsed() >= Duration::from_secs(1);
            assert!(slow || !errors.is_empty(), "{fault:?} was felt");
            anyhow::Ok(())
        })?;
    }
    // Silence until it is lifted; and a watch that is cut in the middle of a line.
    server.block_on(async {
        let silence = server.fault(Fault::silence().on("configmaps").verbs(&["list"]));
        let api = maps(&server);
        assert!(tokio::time::timeout(Duration::from_millis(300), api.list(&ListParams::default())).await.is_err());
        server.lift(silence);
        assert!(!api.list(&ListParams::default()).await?.items.is_empty());

        let mut errors = Vec::new();
        server.fault(Fault::cut().on("configmaps").verbs(&["watch"]).times(1));
        let mut stream = pin!(watcher(maps(&server), labelled()));
        assert_eq!(initial(&mut stream, &mut errors).await?.len(), 1);
        api.patch("one", &PatchParams::default(), &Patch::Merge(json!({"data": {"key": "y"}}))).await?;
        assert_eq!(shown(&next(&mut stream, &mut errors).await?), "apply one");
        Ok(())
    })
}

/// The server is gone, and back on the same port with the same objects; a watch goes on where it was.
#[test]
fn the_server_goes_and_comes_back() -> Result<()> {
    let server = ApiServer::start()?;
    server.create(&configmap("one", "x"))?;
    server.block_on(async {
        let mut errors = Vec::new();
        let mut stream = pin!(watcher(maps(&server), labelled()));
        initial(&mut stream, &mut errors).await?;
        tokio::task::block_in_place(|| server.stop());
        assert!(maps(&server).list(&ListParams::default()).await.is_err());
        tokio::task::block_in_place(|| server.resume())?;
        let params = PatchParams::default();
        maps(&server).patch("one", &params, &Patch::Merge(json!({"data": {"key": "y"}}))).await?;
        assert_eq!(shown(&next(&mut stream, &mut errors).await?), "apply one");
        Ok(())
    })
}

/// A service account may do what its roles say: by verb, resource, namespace and name, and nothing else.
#[test]
fn roles_are_kept() -> Result<()> {
    let server = ApiServer::start()?;
    let token = server.service_account("default", "agent")?;
    let agent = Client::new(&server.kubeconfig_of(&token)?)?;
    let pods: Api<Pod> = Api::namespaced(agent.kube(), "default");
    let refused = agent.block_on(pods.list(&ListParams::default())).unwrap_err().to_string();
    let said = "pods is forbidden: User \"system:serviceaccount:default:agent\" cannot list resource \"pods\" in API group \"\" in the namespace \"default\"";
    assert!(refused.contains(said), "{refused}");
    server.apply_yaml(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: reader}\nrules:\n\
         - {apiGroups: [\"\"], resources: [pods], verbs: [list, watch]}\n\
         - {apiGroups: [\"\"], resources: [configmaps], resourceNames: [one], verbs: [get, list]}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: reader}\n\
         roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}\n\
         subjects: [{kind: ServiceAccount, namespace: default, name: agent}]\n",
    )?;
    server.create(&configmap("one", "x"))?;
    server.create(&configmap("two", "x"))?;
    let code = |result: kube::Result<()>| match result {
        Ok(()) => 200,
        Err(kube::Error::Api(status)) => status.code,
        Err(_) => 0,
    };
    agent.block_on(async {
        let maps = maps(&agent);
        assert_eq!(code(pods.list(&ListParams::default()).await.map(drop)), 200);
        assert_eq!(code(pods.get("nobody").await.map(drop)), 403);
        assert_eq!(code(maps.get("one").await.map(drop)), 200);
        assert_eq!(code(maps.get("two").await.map(drop)), 403);
        assert_eq!(code(maps.list(&ListParams::default()).await.map(drop)), 403);
        // As the real authorizer: a list of one name counts as a request for it.
        assert_eq!(code(maps.list(&ListParams::default().fields("metadata.name=one")).await.map(drop)), 200);
        assert_eq!(code(maps.list(&ListParams::default().fields("metadata.name=two")).await.map(drop)), 403);
        assert_eq!(code(maps.delete("one", &Default::default()).await.map(drop)), 403);
    });
    server.revoke(&token);
    assert_eq!(code(agent.block_on(pods.list(&ListParams::default())).map(drop)), 401);
    Ok(())
}

/// Server-side apply: created or merged, what is left out goes, and another's field is a conflict unless forced.
#[test]
fn server_side_apply() -> Result<()> {
    let server = ApiServer::start()?;
    server.block_on(async {
        let api = maps(&server);
        let wanted = |data: serde_json::Value| {
            Patch::Apply(json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "one"}, "data": data}))
        };
        let mine = PatchParams::apply("mine");
        let made = api.patch("one", &mine, &wanted(json!({"a": "1", "b": "1"}))).await?;
        assert_eq!(made.data.clone().unwrap_or_default().len(), 2);
        let again = api.patch("one", &mine, &wanted(json!({"a": "1", "b": "1"}))).await?;
        assert_eq!(again.resource_version(), made.resource_version(), "nothing has changed");
        let other = PatchParams::apply("other");
        let conflict = api.patch("one", &other, &wanted(json!({"a": "2"}))).await.unwrap_err();
        assert!(
            conflict.to_string().contains("Apply failed with 1 conflict: conflict with \"mine\": .data.a"),
            "{conflict}"
        );
        api.patch("one", &other, &wanted(json!({"c": "3"}))).await?;
        api.patch("one", &other.force(), &wanted(json!({"a": "2", "c": "3"}))).await?;
        let left = api.patch("one", &mine, &wanted(json!({}))).await?;
        let data: Vec<_> = left.data.unwrap_or_default().into_iter().collect();
        assert_eq!(data, [("a".into(), "2".into()), ("c".into(), "3".into())], "b went with its only owner");
        Ok(())
    })
}

/// Two managers write conditions of one status, each its own.
#[test]
fn conditions_are_merged_by_type() -> Result<()> {
    let server = ApiServer::start()?;
    server.install_crds(crds::GATEWAY)?;
    server.apply_yaml(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {name: web}\n\
         spec: {gatewayClassName: egret, listeners: [{name: http, port: 80, protocol: HTTP}]}\n",
    )?;
    server.block_on(async {
        let gvk = kube::core::GroupVersionKind::gvk("gateway.networking.k8s.io", "v1", "Gateway");
        let api: Api<DynamicObject> = Api::namespaced_with(server.kube(), "default", &ApiResource::from_gvk(&gvk));
        let status = |condition: &str| {
            let condition = json!({"type": condition, "status": "True", "reason": condition, "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"});
            Patch::Apply(json!({"apiVersion": gvk.api_version(), "kind": "Gateway", "metadata": {"name": "web"}, "status": {"conditions": [condition]}}))
        };
        api.patch_status("web", &PatchParams::apply("one"), &status("Accepted")).await?;
        let both = api.patch_status("web", &PatchParams::apply("two"), &status("Programmed")).await?;
        let kinds: Vec<_> = both.data["status"]["conditions"].as_array().into_iter().flatten().map(|one| one["type"].clone()).collect();
        assert_eq!(kinds, ["Accepted", "Programmed"]);
        assert_eq!(both.metadata.generation, Some(1), "a status is no change of the spec");
        Ok(())
    })
}

/// A request for a certificate says who asked, and only who may approve and sign does so.
#[test]
fn certificate_signing_requests() -> Result<()> {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let server = ApiServer::start()?;
    server.apply_yaml(
        "apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRole\nmetadata: {name: csr}\nrules:\n\
         - {apiGroups: [certificates.k8s.io], resources: [certificatesigningrequests], verbs: [create, get]}\n\
         - {apiGroups: [certificates.k8s.io], resources: [certificatesigningrequests/status], verbs: [update, patch]}\n---\n\
         apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: csr}\n\
         roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: csr}\n\
         subjects: [{kind: ServiceAccount, namespace: default, name: agent}]\n",
    )?;
    server.create(&json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "default", "name": "agent-x"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "agent", "image": "egret"}]},
    }))?;
    let pod = server.get("Pod", "default", "agent-x")?.context("just made")?;
    let token = server.service_account_of_pod("default", "agent", &pod)?;
    let agent = Client::new(&server.kubeconfig_of(&token)?)?;
    let key = rcgen::KeyPair::generate()?;
    let request = rcgen::CertificateParams::new(Vec::new())?.serialize_request(&key)?.pem()?;
    let made = agent.block_on(async {
        let api: Api<CertificateSigningRequest> = Api::all(agent.kube());
        let object = |request: &str| {
            serde_json::from_value(json!({
                "metadata": {"generateName": "egret-"},
                "spec": {"request": BASE64_STANDARD.encode(request), "signerName": "egret.dev/workload", "usages": ["client auth"], "username": "system:admin"},
            }))
        };
        let nonsense = api.create(&PostParams::default(), &object("no PEM")?).await.unwrap_err();
        assert!(nonsense.to_string().contains("spec.request"), "{nonsense}");
        anyhow::Ok(api.create(&PostParams::default(), &object(&request)?).await?)
    })?;
    assert_eq!(made.spec.username.as_deref(), Some("system:serviceaccount:default:agent"), "not what it said");
    let node = made.spec.extra.as_ref().and_then(|extra| extra.get("authentication.kubernetes.io/node-name"));
    assert_eq!(node.map(Vec::as_slice), Some(&["node-1".to_owned()][..]));

    let name = made.name_any();
    let certificate = BASE64_STANDARD.encode(rcgen::generate_simple_self_signed(Vec::new())?.cert.pem());
    let signed = Patch::Merge(json!({"status": {"certificate": certificate}}));
    let refused = agent.block_on(Api::<CertificateSigningRequest>::all(agent.kube()).patch_status(
        &name,
        &PatchParams::default(),
        &signed,
    ));
    assert!(refused.unwrap_err().to_string().contains("not permitted to sign"), "a role must name the signer");
    server.block_on(async {
        let api: Api<CertificateSigningRequest> = Api::all(server.kube());
        let approved = json!({"status": {"conditions": [{"type": "Approved", "status": "True", "reason": "Test", "message": ""}]}});
        api.patch_approval(&name, &PatchParams::default(), &Patch::Merge(approved)).await?;
        let done = api.patch_status(&name, &PatchParams::default(), &signed).await?;
        let status = done.status.context("a status")?;
        assert!(status.certificate.is_some());
        assert_eq!(status.conditions.map(|all| all.len()), Some(1), "the approval stays");
        Ok(())
    })
}

/// Kinds that nobody installed are not there; they come, in all their versions, and go with their objects.
#[test]
fn definitions_come_and_go() -> Result<()> {
    let server = ApiServer::start()?;
    let entry = "apiVersion: networking.istio.io/v1\nkind: ServiceEntry\nmetadata: {name: web}\nspec: {hosts: [web.test], resolution: DNS}\n";
    let missing = server.apply_yaml(entry).unwrap_err();
    assert!(format!("{missing:#}").contains("ServiceEntry"), "{missing:#}");
    server.install_crds(crds::ISTIO)?;
    server.apply_yaml(entry)?;
    let old = server.get("networking.istio.io/v1alpha3/ServiceEntry", "default", "web")?.context("the same object")?;
    assert_eq!(old["apiVersion"], "networking.istio.io/v1alpha3");
    let wrong = server.apply_yaml(&entry.replace("DNS", "ROUND")).unwrap_err();
    assert!(format!("{wrong:#}").contains("spec.resolution: Unsupported value: \"ROUND\""), "{wrong:#}");
    let wrong = server.apply_yaml(&entry.replace("[web.test]", "web.test")).unwrap_err();
    assert!(format!("{wrong:#}").contains("spec.hosts in body must be of type array"), "{wrong:#}");
    // What is left out of the next version of a file goes.
    server.apply_yaml(&entry.replace(", resolution: DNS", ""))?;
    let now = server.get("networking.istio.io/v1/ServiceEntry", "default", "web")?.context("still there")?;
    assert_eq!((&now["spec"], &now["metadata"]["generation"]), (&json!({"hosts": ["web.test"]}), &json!(2)));
    server.remove_crds(crds::ISTIO)?;
    assert!(server.get("networking.istio.io/v1/ServiceEntry", "default", "web").is_err());
    server.install_crds(crds::ISTIO)?;
    assert_eq!(server.get("networking.istio.io/v1/ServiceEntry", "default", "web")?, None);
    Ok(())
}

/// Metadata alone, where that is asked for; updates on an old version are refused.
#[test]
fn metadata_only_and_stale_updates() -> Result<()> {
    let server = ApiServer::start()?;
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"namespace": "default", "name": "one"},
        "spec": {"nodeName": "node-1", "containers": [{"name": "app", "image": "app"}]},
    });
    server.create(&pod)?;
    server.block_on(async {
        let api: Api<Pod> = Api::all(server.kube());
        let on = |node: &str| ListParams::default().fields(&format!("spec.nodeName={node}"));
        let found: Vec<PartialObjectMeta<Pod>> = api.list_metadata(&on("node-1")).await?.items;
        assert_eq!(found.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["one"]);
        assert!(api.list(&on("node-2")).await?.items.is_empty());

        let maps = maps(&server);
        let made: ConfigMap =
            maps.create(&PostParams::default(), &serde_json::from_value(configmap("one", "x"))?).await?;
        let mut newer = made.clone();
        newer.data = Some([("key".to_owned(), "y".to_owned())].into());
        maps.replace("one", &PostParams::default(), &newer).await?;
        let stale = maps.replace("one", &PostParams::default(), &made).await.unwrap_err();
        assert!(matches!(&stale, kube::Error::Api(status) if status.is_conflict()), "{stale}");
        Ok(())
    })
}
