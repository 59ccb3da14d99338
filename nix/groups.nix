# What a group of agents is to systemd: dependencies of its units, which hold with healer dead.
{
  # services.healer.groups with defaults filled in.
  groups,
  # The unit of an agent, by its name.
  unitOf,
}:
let
  inherit (builtins)
    attrNames
    concatMap
    elem
    filter
    genList
    length
    elemAt
    head
    ;

  # The names in front of one in a list, and those behind it.
  split =
    name: names:
    let
      place = head (filter (index: elemAt names index == name) (genList (index: index) (length names)));
    in
    {
      before = genList (elemAt names) place;
      behind = genList (index: elemAt names (place + 1 + index)) (length names - place - 1);
    };

  ofGroup =
    name: group:
    let
      inherit (split name group.agents) before behind;
    in
    {
      one-for-one = {
        leaders = [ ];
        followers = [ ];
        inherit before;
      };
      rest-for-one = {
        leaders = before;
        followers = behind;
        inherit before;
      };
      one-for-all = {
        leaders = before ++ behind;
        followers = before ++ behind;
        inherit before;
      };
    }
    .${group.strategy};

  memberships =
    name: map (ofGroup name) (filter (group: elem name group.agents) (map (key: groups.${key}) (attrNames groups)));
  units = part: name: map unitOf (concatMap (group: group.${part}) (memberships name));
in
name: {
  # Restarted and stopped with these; see systemd.unit(5).
  partOf = units "leaders" name;
  # PartOf= stops, and does not start again: so that a mate that is started brings these back.
  wants = units "followers" name;
  after = units "before" name;
}
