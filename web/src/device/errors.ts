/** An error whose message is meant for the person who sees it. */
export class DeviceError extends Error {
  override name = 'DeviceError';
}

/** A bundle that cannot be used; the message names the file. */
export class BundleError extends DeviceError {
  override name = 'BundleError';
}

/** An option that cannot be used. */
export class OptionError extends DeviceError {
  override name = 'OptionError';
}

/** A decision that no trace allows: the policy is at fault, or the bundle. */
export class ContractError extends DeviceError {
  override name = 'ContractError';
}

const QUOTED = 200;

/** Return what a message may quote of a text that anyone may have written: its beginning, on one line. */
export function quoted(text: string): string {
  const plain = text.slice(0, QUOTED).replace(/\p{C}|\p{Zl}|\p{Zp}/gu, ' ');
  return text.length <= QUOTED ? plain : `${plain}...`;
}

/** Return what an unknown error says. */
export function messageOf(error: unknown): string {
  return error instanceof Error ? error.message : String(error);
}
