# How an agent is told of its last crash: ./last-crash.sh in front of its command, or in front of an
# adopted unit's, and what that needs in the unit.
{
  shell,
  script,
  quote,
}:
let
  inherit (builtins)
    any
    baseNameOf
    concatMap
    concatStringsSep
    elemAt
    filter
    head
    isList
    isString
    match
    split
    ;

  toList = value: if isList value then value else [ value ];
  words = text: filter (word: isString word && word != "") (split "[[:space:]]+" text);

  # ExecStart='s special prefixes (systemd.service(5)), its first word, and all.
  parsed = command: match "([-:+!|]*)(\"?([^[:space:]\"]+).*)" command;

  # What runs in a root directory of its own finds neither the script nor what it reads.
  elsewhere = [
    "RootDirectory"
    "RootImage"
    "NoExecPaths"
  ];
  canWrap =
    agent:
    !any (setting: agent.serviceConfig ? ${setting}) elsewhere
    && (
      isList agent.command
      || (
        isString agent.command
        && parsed agent.command != null
        && match "@.*" (elemAt (parsed agent.command) 1) == null
        # More than one command.
        && match ".*[[:space:]];([[:space:]].*)?" agent.command == null
      )
    );

  tells =
    agent: if agent.lastCrash != null then agent.lastCrash else !agent.adopt && canWrap agent;

  # Where the file is, and what makes that place. A RuntimeDirectory= costs each start a part of a
  # millisecond: it is for where nothing cheaper will do.
  place =
    name: agent:
    let
      own = concatMap words (toList (agent.serviceConfig.RuntimeDirectory or [ ]));
      inherit (agent) serviceConfig;
      # What is in one of these may not be written, or not be there.
      confined = any (setting: serviceConfig ? ${setting}) [
        "InaccessiblePaths"
        "PrivateTmp"
        "ProtectSystem"
        "ReadOnlyPaths"
        "TemporaryFileSystem"
      ];
      runtime = below: made: {
        file = "/run/${below}/${fileName}";
        tmpfiles = [ ];
        settings = made;
      };
    in
    if own != [ ] && !agent.adopt then
      runtime (elemAt (match "([^:]*).*" (head own)) 0) { }
    else if agent.adopt || confined then
      runtime "healer-agents/${name}" {
        RuntimeDirectory = "healer-agents/${name}";
        RuntimeDirectoryMode = "0700";
      }
    # A dynamic user has a /tmp of its own (systemd.exec(5)).
    else if agent.user == null && serviceConfig.DynamicUser or true == true then
      {
        file = "/tmp/${fileName}";
        tmpfiles = [ ];
        settings = { };
      }
    else
      let
        user = if agent.user == null then serviceConfig.User or "root" else agent.user;
      in
      {
        file = "/run/healer-agents/${name}/${fileName}";
        tmpfiles = [ "d /run/healer-agents/${name} 0700 ${user} root -" ];
        settings = { };
      };
  fileName = "last-crash.json";
  crumb = agent: if agent.breadcrumb == null then "" else agent.breadcrumb;
  teller =
    name: agent:
    "${shell} ${script} %n ${quote (place name agent).file} ${quote (crumb agent)}";
in
{
  inherit canWrap tells;

  # ExecStart= and what goes with it, of an agent of healer's own.
  own =
    name: agent: commandLine:
    let
      parts = if isString agent.command then parsed agent.command else null;
      program = if parts == null then head agent.command else elemAt parts 2;
      prefix = if parts == null then "" else elemAt parts 0;
      rest = if parts == null then commandLine else elemAt parts 1;
    in
    if agent.command == null || !tells agent then
      { ExecStart = commandLine; }
    else
      {
        ExecStart = "${prefix}${teller name agent} ${rest}";
        # The journal would name the shell.
        SyslogIdentifier = baseNameOf program;
      }
      // (place name agent).settings;

  # Lines of tmpfiles.d(5).
  tmpfiles = name: agent: if tells agent then (place name agent).tmpfiles else [ ];

  # The same of an adopted unit, whose command is its own.
  adopted =
    name: agent:
    if tells agent then
      {
        environment.HEALER_LAST_CRASH = (place name agent).file;
        serviceConfig = {
          RuntimeDirectory = toList (agent.serviceConfig.RuntimeDirectory or [ ]) ++ [
            (place name agent).settings.RuntimeDirectory
          ];
          ExecStartPre = [ (teller name agent) ] ++ toList (agent.serviceConfig.ExecStartPre or [ ]);
        };
      }
    else
      {
        environment = { };
        serviceConfig = { };
      };

  # Behind the stamp: whatever becomes of it, the end is written down.
  atStop =
    agent:
    if agent.breadcrumb == null then
      [ ]
    else
      [ "-${shell} ${script} %n \"\" ${quote agent.breadcrumb}" ];
}
