# docs/options.md, from the option declarations. To write it anew:
#   nix eval --raw --impure --expr 'import ./nix/options-doc.nix { lib = import <nixpkgs/lib>; }' >docs/options.md
{ lib }:
let
  evaluated = lib.evalModules {
    modules = [
      ./options.nix
      {
        options.networking.hostName = lib.mkOption { default = ""; };
      }
    ];
  };

  # Without the module system's own.
  options = builtins.filter (
    option: lib.hasPrefix "services.healer." option.name && !lib.hasInfix "._module." option.name
  ) (lib.optionAttrSetToDocList evaluated.options);

  # Roles of the option documentation's Markdown, as plain Markdown shows them.
  plain = builtins.replaceStrings [ "{option}" "{file}" "{manpage}" ] [ "" "" "" ];

  shown =
    label: value:
    if value._type == "literalMD" then
      "- ${label}: ${value.text}\n"
    else if lib.hasInfix "\n" (lib.trim value.text) then
      "- ${label}:\n  ```nix\n  ${
        builtins.replaceStrings [ "\n" ] [ "\n  " ] (lib.trim value.text)
      }\n  ```\n"
    else
      "- ${label}: `${lib.trim value.text}`\n";

  section =
    option:
    "## ${builtins.replaceStrings [ "<" ">" ] [ "\\<" "\\>" ] option.name}\n\n"
    + "${plain (lib.trim option.description)}\n\n"
    + "- Type: ${option.type}\n"
    + lib.optionalString (option ? default) (shown "Default" option.default)
    + lib.optionalString (option ? example) (shown "Example" option.example);
in
''
  # Options of services.healer

  Rendered from nix/options.nix by nix/options-doc.nix. Durations are seconds and may have a
  fraction.

''
+ lib.concatStringsSep "\n" (map section options)
