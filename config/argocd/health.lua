-- The health of a DedupPolicy for Argo CD, from its conditions. In ConfigMap argocd-cm it is
-- resource.customizations.health.dedupd.io_DedupPolicy.
local hs = { status = "Progressing", message = "the operator has not seen this policy yet" }
if obj.status == nil or obj.status.conditions == nil then
  return hs
end
if obj.metadata.generation ~= nil and obj.status.observedGeneration ~= obj.metadata.generation then
  hs.message = "the operator has not seen this change yet"
  return hs
end
local is = {}
for _, condition in ipairs(obj.status.conditions) do
  is[condition.type] = condition
end
-- What will not mend by itself, the most telling first.
for _, kind in ipairs({ "Accepted", "ConfigLoaded", "StoreReachable" }) do
  local condition = is[kind]
  if condition ~= nil and condition.status == "False" and condition.reason ~= "Outdated" then
    return { status = "Degraded", message = kind .. ": " .. condition.message }
  end
end
local ready = is["Ready"]
if ready == nil then
  return hs
end
if ready.status == "True" then
  return { status = "Healthy", message = ready.message }
end
return { status = "Progressing", message = ready.message }
